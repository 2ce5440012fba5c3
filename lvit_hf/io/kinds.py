"""Kinds of image files, told by what they begin with."""

GZIP_MAGIC = b"\x1f\x8b"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# What a file without a preamble begins with: an element of group 2 or 8, and how its value is represented.
FIRST_GROUPS = {b"\x02\x00": "little", b"\x08\x00": "little", b"\x00\x08": "big"}
FIRST_REPRESENTATIONS = {b"UL", b"CS", b"UI", b"OB", b"DA", b"TM", b"LO", b"SH"}
LONGEST_FIRST_VALUE = 256


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins so is a TIFF file."""
    return head.startswith(TIFF_MAGIC)


def is_nifti(head: bytes) -> bool:
    """Whether a file that begins so, unpacked, is a NIfTI file."""
    return len(head) >= 348 and (head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2"))


def has_preamble(head: bytes) -> bool:
    """Whether a file that begins so is a DICOM file as the standard has it."""
    return head[128:132] == b"DICM"


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so is a DICOM file, with a preamble or without."""
    if has_preamble(head):
        return True
    order = FIRST_GROUPS.get(head[:2])
    if order is None or len(head) < 16 or int.from_bytes(head[2:4], order) > 0x0100:  # type: ignore[arg-type]
        return False
    implicit = order == "little" and int.from_bytes(head[4:8], "little") <= LONGEST_FIRST_VALUE
    return head[4:6] in FIRST_REPRESENTATIONS or implicit

"""The card of a data set: what `lvit data check` finds in it, and what only its owner can say."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from ..data.check import describe_counts, has_problems, sort_duplicates
from ..model.captions_lvit import FAMILIES, CaptionFamily
from .model_card import REPOSITORY_PLACEHOLDER, describe_share, fill_template, parse_card


TEMPLATE = Path(__file__).with_name("dataset_card.md")

# How the Hub calls the splits.
HUB_SPLITS = {"train": "train", "valid": "validation", "test": "test"}

SIZE_CATEGORIES = {1000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
LARGEST_CATEGORY = "1M<n<10M"

# Identifiers of the Hub that name no terms.
VAGUE_LICENSES = {"other", "unknown"}


@dataclass(frozen=True)
class Origin:
    """What no program can find in a data set.

    Args:
        name: Its title.
        license: An identifier of the Hub's list of licences.
        source: Where it comes from, a sentence in Markdown.
        terms: What its users must observe, in Markdown; blank where the licence says it all.
        languages: Two-letter codes of the languages of its captions.
    """

    name: str
    license: str
    source: str
    terms: str = ""
    languages: tuple[str, ...] = ("en",)

    def __post_init__(self):
        if not self.license.strip() or not self.source.strip():
            raise ValueError("A card needs a licence and a source of the data.")
        if self.license in VAGUE_LICENSES and not self.terms.strip():
            raise ValueError(f"The licence {self.license!r} names no terms: say with --terms what users must observe.")


def render_dataset_card(
    report: dict[str, Any], origin: Origin, repo_id: str, template: Path = TEMPLATE
) -> DatasetCard:
    """Fills a template with what was found in a data set.

    Ids, names of files and captions of one image alone stay out of the card, since they may name a patient.

    Args:
        report: As `check_data` returns.
        origin: What its owner says.
        repo_id: The repository that the card is for, which the template calls `USER/NAME`.
        template: A card with Jinja fields for `card_data` (the front matter), `origin`, `splits` (of the report,
            by the Hub's names), `images` (their number), `families` (of captions), and `across` and `within` (the
            numbers of images that lie in several splits, and several times in one).

    Raises:
        FileNotFoundError: If the template is missing.
        ValueError: If rows of the data set cannot be used, or the template cannot.
    """
    if has_problems(report):
        number = sum(len(split["problems"]) for split in report["splits"].values())
        raise ValueError(
            f"{report['path']} has {number} problem{'' if number == 1 else 's'}: lvit data check names the rows."
        )
    splits = {HUB_SPLITS[name]: split for name, split in report["splits"].items()}
    across, within = sort_duplicates(report)
    images = sum(split["images"] for split in splits.values())
    content = fill_template(
        template,
        {"counts": describe_counts, "percent": describe_share},
        card_data=make_card_data(list(splits), images, origin).to_yaml(),
        origin=origin,
        splits=splits,
        images=images,
        families=find_families(splits),
        across=len(across),
        within=len(within),
    )
    card = parse_card(content.replace(REPOSITORY_PLACEHOLDER, repo_id), DatasetCard)
    if not card.data.get("license"):
        raise ValueError(f"{template} names no license in its front matter: it needs the field card_data there.")
    return card


def make_card_data(splits: list[str], images: int, origin: Origin) -> DatasetCardData:
    """The front matter. Its files are those that `datasets` uploads, see docs/publish.md."""
    files = [{"split": name, "path": f"data/{name}-*"} for name in splits]
    return DatasetCardData(
        pretty_name=origin.name,
        license=origin.license,
        language=list(origin.languages),
        task_categories=["image-segmentation"],
        size_categories=[size_category(images)],
        tags=["medical", "text-guided-segmentation"],
        configs=[{"config_name": "default", "data_files": files}],
    )


def size_category(images: int) -> str:
    """The Hub's name for a number of rows."""
    return next((name for limit, name in SIZE_CATEGORIES.items() if images < limit), LARGEST_CATEGORY)


def find_families(splits: dict[str, dict[str, Any]]) -> list[CaptionFamily]:
    """The families that captions of any split and column are of."""
    found = {
        name for split in splits.values() for captions in split["captions"].values() for name in captions["families"]
    }
    return [family for name, family in FAMILIES.items() if name in found]

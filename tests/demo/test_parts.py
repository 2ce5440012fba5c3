import threading

import pytest

from lvit_hf.demo.captions import write_caption
from lvit_hf.demo.engine import Batcher, Worker
from lvit_hf.demo.files import MAX_CAPTION, clean_caption
from lvit_hf.demo.texts import CHINESE, ENGLISH
from lvit_hf.model.captions_lvit import FAMILIES, parse_caption


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_the_builder_writes_what_the_family_reads(family):
    for attribute in family.attributes:
        if attribute.name in ("sides", "count"):
            continue  # written along with the lungs
        value = (attribute.values[0],) if attribute.multiple else attribute.values[-1]
        caption = parse_caption(write_caption(family, {attribute.name: value}))
        assert caption is not None and caption.family == family.name
        assert caption.findings[0][attribute.name] == value


def test_the_builder_counts_infected_areas_itself():
    family = FAMILIES["lung infection"]
    text = write_caption(family, {"left lung": ("upper", "lower"), "right lung": ("middle",)})
    assert text.startswith("bilateral pulmonary infection, three infected areas")


def test_the_builder_adds_findings():
    family = FAMILIES["polyp"]
    first = write_caption(family, {"size": "small", "place": "top left"})
    second = parse_caption(write_caption(family, {"size": "large", "place": "bottom right"}, first))
    assert [finding["size"] for finding in second.findings] == ["small", "large"]


def test_captions_are_cleaned():
    assert clean_caption(" one\x00 polyp,\n\u202e top\tleft ") == "one polyp, top left"
    assert clean_caption(None) == ""
    with pytest.raises(ValueError, match="10,000 characters"):
        clean_caption("x" * 10_000)
    assert len(clean_caption("x" * MAX_CAPTION)) == MAX_CAPTION


def test_concurrent_callers_share_runs_and_get_their_own_results():
    sizes, gate = [], threading.Event()

    def double(items: list[int]) -> list[int]:
        gate.wait()
        sizes.append(len(items))
        return [2 * item for item in items]

    batcher, results = Batcher(double, Worker(), size=4), {}
    threads = [threading.Thread(target=lambda n=n: results.update({n: batcher([n])[0]})) for n in range(20)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert results == {n: 2 * n for n in range(20)}
    assert sum(sizes) == 20 and max(sizes) <= 4 and len(sizes) < 20
    assert batcher(list(range(9))) == [2 * n for n in range(9)]  # more than a batch


def test_an_error_reaches_every_caller_and_the_next_one_works():
    def fail_on_zero(items: list[int]) -> list[float]:
        return [1 / item for item in items]

    batcher = Batcher(fail_on_zero, Worker())
    with pytest.raises(ZeroDivisionError):
        batcher([0])
    assert batcher([2]) == [0.5]


def test_both_languages_have_every_word():
    assert ENGLISH.keys() == CHINESE.keys()
    assert all(all(words.values()) for words in (ENGLISH, CHINESE))

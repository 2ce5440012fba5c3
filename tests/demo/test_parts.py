import asyncio
import gc
import re
import struct
import threading
import time

import gradio as gr
import pytest
from gradio.route_utils import FnIndexInferError
from PIL import Image
from starlette.requests import Request

from lvit_hf.demo import engine
from lvit_hf.demo.checked_blocks import find_wrong_input
from lvit_hf.demo.engine import Batcher, Cache, Worker, stem_of
from lvit_hf.demo.jobs import MOST_WAITING, Job, Jobs, Stopped
from lvit_hf.demo.page import refuse_call
from lvit_hf.demo.texts import CHINESE, ENGLISH, say
from lvit_hf.demo.uploads import MAX_CAPTION, check_upload, clean_caption, explain
from lvit_hf.demo.viewer import write_caption
from lvit_hf.io.tables import read_table
from lvit_hf.model.captions_lvit import FAMILIES, parse_caption, read_caption


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_the_builder_writes_what_the_family_reads(family):
    for attribute in family.attributes:
        if attribute.name in ("sides", "count"):
            continue  # written along with the lungs
        value = (attribute.values[0],) if attribute.multiple else attribute.values[-1]
        caption = parse_caption(write_caption(family.name, {attribute.name: value}))
        assert caption is not None and caption.family == family.name
        assert caption.findings[0][attribute.name] == value


def test_the_builder_counts_infected_areas_itself():
    text = write_caption("lung infection", {"left lung": ("upper", "lower"), "right lung": ("middle",)})
    assert text.startswith("bilateral pulmonary infection, three infected areas")


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
    batcher = Batcher(lambda items: [1 / item for item in items], Worker())
    with pytest.raises(ZeroDivisionError):
        batcher([0])
    assert batcher([2]) == [0.5]


def work_until_stopped(job: Job) -> dict:
    while True:
        job.step(1, 2)
        time.sleep(0.01)


def test_a_visitors_next_request_ends_the_last_one_and_no_others():
    jobs = Jobs()
    first, other = (jobs.start(name, 1, work_until_stopped, False) for name in ("visitor", "other"))
    assert jobs.start("visitor", 1, work_until_stopped, False) is first
    assert jobs.start("visitor", 2, lambda job: {"answer": 2}, False).future.result(5) == {"answer": 2}
    assert isinstance(first.future.exception(5), Stopped)
    assert not other.future.done() and asyncio.run(jobs.wait(other)) is None and other.progress["total"] == 2
    jobs.stop("other")
    assert isinstance(other.future.exception(5), Stopped)


def test_a_request_that_comes_late_ends_nothing_newer():
    jobs = Jobs()
    newer = jobs.start("visitor", 2, work_until_stopped, False)
    with pytest.raises(Stopped):
        jobs.start("visitor", 1, work_until_stopped, False)
    assert not newer.future.done() and jobs.start("visitor", 2, work_until_stopped, False) is newer
    newer.stop()


def test_a_visitor_who_asks_no_more_has_left(monkeypatch):
    monkeypatch.setattr("lvit_hf.demo.jobs.LEASE_SECONDS", 0.1)
    job = Jobs().start("visitor", 1, work_until_stopped, False)
    assert isinstance(job.future.exception(5), Stopped)


def test_too_many_visitors_are_told_so():
    jobs = Jobs()
    started = [jobs.start(str(number), 1, work_until_stopped, False) for number in range(MOST_WAITING)]
    with pytest.raises(ValueError, match="Too many visitors"):
        jobs.start("one more", 1, work_until_stopped, False)
    for job in started:
        job.stop()


def test_whoever_asks_again_is_still_there(monkeypatch):
    monkeypatch.setattr("lvit_hf.demo.jobs.LEASE_SECONDS", 0.4)
    jobs = Jobs()
    for _ in range(8):
        job = jobs.start("visitor", "1", work_until_stopped, False)
        time.sleep(0.1)
    assert not job.future.done()
    jobs.stop("visitor")


def test_what_is_refused_is_not_logged_as_a_fault_of_the_server(caplog):
    def refuse(job: Job) -> dict:
        raise ValueError("It has too many slices.")

    jobs = Jobs()
    for number in range(3):
        with pytest.raises(ValueError, match="too many slices"):
            asyncio.run(jobs.wait(jobs.start("visitor", number, refuse, False)))
    gc.collect()
    assert not caplog.records


def test_visitors_whose_work_is_done_keep_nobody_waiting():
    jobs = Jobs()
    for number in range(MOST_WAITING + 1):
        assert jobs.start(str(number), "1", lambda job: {}, False).future.result(5) == {}


def test_both_languages_have_every_word_and_sentence():
    assert ENGLISH.keys() == CHINESE.keys()
    assert all(all(words.values()) for words in (ENGLISH, CHINESE))
    sentence = "Right lung: the caption says upper and middle and lower, the image speaks for lower (0.54)."
    assert say(sentence) == {"en": sentence, "zh": "右肺：描述说 上、中、下，图像更像 下（0.54）。"}
    sentence = "The image looks like none that the checkpoint was trained on: chest radiographs, H&E slides."
    assert say(sentence)["zh"] == "该图像不像该模型训练过的任何一类：胸部 X 光片、H&E 切片。"
    sentence = "The CSV file has a caption for left and right, one.png, but there is no such image."
    assert say(sentence)["zh"] == "CSV 文件中有 left and right, one.png 的描述，但没有这幅图像。"
    assert say("The caption says that there is no polyp, the image speaks for some (1.00).")["zh"].startswith(
        "描述说没有"
    )
    assert say("one.png: The image has more than 16 million pixels. Crop it.")["zh"].startswith(
        "one.png：图像超过 1600 万像素"
    )
    assert say("left.png is a broken image file: it ends too early.")["zh"] == "left.png 是损坏的图像文件。"


@pytest.mark.parametrize(
    "text, families",
    [
        ("one small polyp", ["lung infection", "nuclei"]),
        ("a polyp and no polyp", ["polyp"]),
        ("one lung infection in the left lung, no infection in the left lung", ["lung infection"]),
        ("", ["polyp"]),
    ],
)
def test_what_is_said_of_a_caption_is_all_chinese(text, families):
    message = read_caption(text, families).message
    assert message and not re.search("[A-Za-z]", say(message)["zh"]), say(message)


@pytest.mark.parametrize(
    "content, problem",
    [("a,b\n", "第一行需要"), ("image,image,text\n", "个 image 列")],
)
def test_what_is_said_of_a_csv_file_is_chinese(tmp_path, content, problem):
    (tmp_path / "captions.csv").write_text(content)
    with pytest.raises(ValueError) as error:
        read_table(tmp_path / "captions.csv", ("image", "text"))
    assert problem in say(explain(error.value, tmp_path / "captions.csv"))["zh"]


@pytest.mark.parametrize(
    ("width", "height", "is_taken"), [(4000, 4000, True), (4001, 4000, False), (65_000, 65_000, False)]
)
def test_a_picture_that_announces_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, width, height, is_taken):
    path = tmp_path / "large.bmp"
    Image.new("L", (1, 1)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:18] + struct.pack("<ii", width, height) + content[26:])
    if is_taken:
        assert check_upload(path) == path
    else:
        with pytest.raises(ValueError, match="more than 16 million pixels"):
            check_upload(path)


def test_results_are_named_after_their_file():
    names = {"a.png": "a", "folder/scan.nii.gz": "scan", "no_ending": "no_ending", ".png": "image", "": "image"}
    assert {name: stem_of(name) for name in names} == names


def test_what_is_kept_has_a_bound_in_bytes_and_in_number(monkeypatch):
    monkeypatch.setattr(engine, "CACHED_BYTES", 100)
    monkeypatch.setattr(engine, "CACHED_VALUES", 10)
    cache = Cache(len)
    for key in range(11):
        cache.put(key, "x")
    assert [cache.get(key) for key in range(11)] == [None, *["x"] * 10]  # the oldest made room
    cache.put("all", "x" * 100)
    cache.put("more", "x" * 101)
    assert cache.get("all") and not cache.get("more") and not cache.get(10)


def test_who_asks_for_what_is_being_made_waits_for_it():
    cache, gate, made = Cache(len), threading.Event(), []

    def make() -> str:
        gate.wait(5)
        made.append("once")
        return "value"

    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(cache.get_or_make("key", make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert found == 4 * ["value"] and made == ["once"]


NUMBER, WHOLE = gr.Number(0.5, minimum=0, maximum=1), gr.Number(1, precision=0, minimum=1)
FILE, FILES = gr.File(), gr.File(file_count="multiple")
CHOICE, TEXT = gr.Dropdown(["image", "patient"]), gr.Textbox()


@pytest.mark.parametrize(
    ("component", "taken", "refused", "expected"),
    [
        (NUMBER, [0, 0.5, 1], [-0.1, 1.1, "0", None, True, float("nan")], "a number of at least 0 and of at most 1"),
        (WHOLE, [1, 2.0, 10**9], [0, 1.5, False, [1]], "a whole number of at least 1"),
        (gr.Number(precision=0), [-3, 0], [0.5, float("inf")], "a whole number"),
        (CHOICE, ["image", "patient", None], ["left", 1, ["image"]], "one of image, patient"),
        (TEXT, ["", "one polyp", None], [1, ["a"], {}], "a text"),
        (FILE, [{"path": "a"}, None], ["a", [{"path": "a"}], 7], "an uploaded file"),
        (FILES, [[{"path": "a"}], [], None], ["a", {"path": "a"}, [{"path": "a"}, "b"]], "a list of uploaded files"),
        (gr.JSON(), [1, "a", None], [], ""),
    ],
)
def test_what_a_parameter_takes_and_what_it_must_be(component, taken, refused, expected):
    for value in taken:
        assert find_wrong_input(["it"], [component], [value]) is None, value
    for value in refused:
        sentence = f"it must be {expected}, got {value!r}."
        assert find_wrong_input(["a", "it"], [gr.JSON(), component], [1, value]) == sentence
    assert find_wrong_input(["it"], [component], []) == "1 values are needed (it), got 0."


def test_what_was_sent_is_quoted_but_not_at_length():
    for length, quoted in ((58, repr(58 * "x")), (59, repr(59 * "x")[:60] + "...")):
        assert find_wrong_input(["it"], [NUMBER], [length * "x"]).endswith(f", got {quoted}.")


@pytest.mark.parametrize(
    ("path", "error", "status"),
    [
        ("/gradio_api/call/segment", TypeError("color"), 422),
        ("/gradio_api/run/segment", KeyError("segment"), 422),
        ("/gradio_api/queue/join", FnIndexInferError(), 422),
        ("/gradio_api/queue/join", KeyError("a fault"), 500),
    ],
)
def test_a_call_that_cannot_be_is_told_from_a_fault_of_the_server(path, error, status):
    request = Request({"type": "http", "path": path, "headers": [], "query_string": b"", "server": ("host", 80)})
    answer = refuse_call(request, error)
    assert answer.status_code == status
    assert (b"no such endpoint" in answer.body) == (status == 422)

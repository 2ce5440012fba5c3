"""Many users at once: shared forward passes, own answers, a bounded queue; and what is kept of them."""

import threading
import time
from collections import Counter

import httpx
import pytest
from app_page import Network, serve
from gradio_client import Client, handle_file
from gradio_client.exceptions import AuthenticationError
from gradio_client.utils import QueueError
from tiny_lvit import tiny_model, tiny_processor

from benchmarks.load import Case, make_cases, read_examples, run_load
from lvit_hf.demo import build_demo
from lvit_hf.demo.engine import BATCH_SIZE, CACHED_BYTES, CACHED_VALUES, KEEP_SECONDS, Cache
from lvit_hf.demo.page import QUEUE_SIZE
from lvit_hf.inference.segmenter import Segmenter


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """Crops of the examples, with the answers that a segmenter gives when it is asked for one alone."""
    cases = make_cases(read_examples(), 96)
    segmenter = Segmenter(tiny_model(), tiny_processor())
    for case in cases:
        case.solve(segmenter)
    return cases


@pytest.fixture(scope="module")
def server():
    """The address of a page, a count of the network's runs, and a gate at which they can be stopped."""
    segmenter = Segmenter(tiny_model(), tiny_processor())
    counter, gate = Network(segmenter), threading.Event()
    gate.set()
    segmenter.model.register_forward_pre_hook(lambda *_: gate.wait() and None)
    with serve(segmenter) as url:
        yield url, counter, gate


def test_users_at_once_share_forward_passes_and_get_their_own_answers(server, cases):
    url, counter, _ = server
    answers, _ = run_load(url, cases, clients=32, limit=300)
    assert Counter(answer.verdict for answer in answers) == {"right": len(cases)}
    assert sum(counter.sizes) == len(cases)
    assert len(counter.sizes) < len(cases) and max(counter.sizes) <= BATCH_SIZE


def test_another_answer_than_ones_own_is_found_out(server, cases):
    url, *_ = server
    first, second = (Case(**vars(case)) for case in cases[:2])
    first.mask, second.mask = ~first.mask, second.mask.T[:-1]
    answers, _ = run_load(url, [first, second], clients=2, limit=60)
    assert [answer.verdict for answer in answers] == ["wrong", "wrong"]


def test_a_full_queue_says_so_and_loses_nothing(server, cases, tmp_path):
    url, _, gate = server
    path = tmp_path / "picture.png"
    path.write_bytes(cases[0].content)
    call, client = f"{url}gradio_api/call/v2/segment", Client(url, verbose=False)
    uploaded = httpx.post(f"{url}gradio_api/upload", files={"files": ("picture.png", cases[0].content)}).json()[0]
    image = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}
    events: list[str] = []
    gate.clear()
    try:
        while len(events) <= QUEUE_SIZE + BATCH_SIZE:
            answer = httpx.post(call, json={"image": image, "text": f"caption {len(events)}"})
            if answer.status_code != httpx.codes.OK:
                break
            events.append(answer.json()["event_id"])
        assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and "Queue is full" in answer.json()["detail"]
        with pytest.raises(QueueError, match="Queue is full"):
            client.predict(handle_file(path), api_name="/segment")
    finally:
        gate.set()
    assert len(events) >= QUEUE_SIZE
    for number, event in enumerate(events):
        assert f'"text": "caption {number}"' in httpx.get(f"{call}/{event}", timeout=120).text


def test_the_cache_holds_so_many_values_at_most():
    cache = Cache(lambda value: 1)
    made = []
    for number in [*range(CACHED_VALUES + 1), CACHED_VALUES, 0]:
        assert cache.get_or_make(number, lambda number=number: made.append(number) or number) == number
    assert made == [*range(CACHED_VALUES + 1), 0]


def test_the_cache_forgets_in_time_and_what_is_larger_than_it_at_once(monkeypatch):
    now, made = time.monotonic(), []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    cache = Cache(lambda size: size)
    for seconds in (0, KEEP_SECONDS - 1, 2):
        now += seconds
        assert cache.get_or_make("scan", lambda: made.append("scan") or 1) == 1
    assert made == ["scan", "scan"]
    for _ in range(2):
        assert cache.get_or_make("large", lambda: made.append("large") or CACHED_BYTES + 1) > CACHED_BYTES
    assert made[2:] == ["large", "large"]


def test_nothing_is_kept_or_told(server):
    url, *_ = server
    config = httpx.get(f"{url}config").json()
    assert config["analytics_enabled"] is False and config["run_history"] is False and config["show_error"] is False
    assert httpx.get(f"{url}monitoring").status_code == httpx.codes.FORBIDDEN
    demo = build_demo(Segmenter(tiny_model(), tiny_processor()))
    assert demo.delete_cache == (KEEP_SECONDS, KEEP_SECONDS)
    assert demo._queue.ANALYTICS_MAX_EVENTS == 1
    demo.close()


def test_visitors_log_in_where_the_environment_says_so(monkeypatch, cases, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(cases[0].content)
    monkeypatch.setenv("LVIT_AUTH", "user:pass:word")
    with serve(Segmenter(tiny_model(), tiny_processor())) as url:
        for address in ("config", "gradio_api/info", "gradio_api/call/segment/event"):
            assert httpx.get(f"{url}{address}").status_code == httpx.codes.UNAUTHORIZED
        for address in ("gradio_api/upload", "gradio_api/call/segment", "gradio_api/call/v2/segment"):
            assert httpx.post(f"{url}{address}", json={}).status_code == httpx.codes.UNAUTHORIZED
        assert "segment" not in httpx.get(f"{url}gradio_api/mcp/schema").text
        assert httpx.get(f"{url}health").text == "ok"
        with pytest.raises(AuthenticationError):
            Client(url, verbose=False)
        client = Client(url, verbose=False, auth=("user", "pass:word"))
        assert client.predict(handle_file(path), api_name="/segment")[2]["image"] == "picture.png"

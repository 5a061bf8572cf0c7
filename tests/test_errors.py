"""Which faults may have gone when the same is tried again."""

from __future__ import annotations

import errno
import socket
import threading
from typing import Any

import httpx2
import pytest
import requests
import urllib3
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from ray.exceptions import RayTaskError

from orchestrator.errors import UserError, passes


def raised(work: Any) -> BaseException:
    with pytest.raises(Exception) as caught:
        work()
    return caught.value


@pytest.fixture(scope="module")
def nowhere() -> str:
    """The address of a port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def hanging_up(door: socket.socket) -> None:
    while True:
        try:
            near = door.accept()[0]
        except OSError:
            return
        near.recv(1000)
        near.close()


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "EAGAIN", "ETIMEDOUT", "ECONNRESET", "EHOSTUNREACH", "ENETUNREACH"])
def test_what_the_system_gets_over(name: str) -> None:
    assert passes(OSError(getattr(errno, name), "x"))


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "ENOENT", "EACCES", "EROFS", "EISDIR", "EMFILE"])
def test_what_it_does_not(name: str) -> None:
    assert not passes(OSError(getattr(errno, name), "x"))


@pytest.mark.parametrize(
    "get", [requests.get, httpx2.get, lambda url: urllib3.PoolManager(retries=0).request("GET", url)]
)
def test_a_network_by_each_library_that_talks_over_one(get: Any, nowhere: str) -> None:
    assert passes(raised(lambda: get(nowhere)))
    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=hanging_up, args=(door,), daemon=True).start()
        assert passes(raised(lambda: get(f"http://127.0.0.1:{door.getsockname()[1]}")))


def test_a_hub_that_is_busy_and_one_that_has_no_such_model() -> None:
    def answer(status: int) -> HfHubHTTPError:
        request = httpx2.Request("GET", "https://hub.example/model")
        return HfHubHTTPError("the hub's", response=httpx2.Response(status, request=request))

    assert passes(answer(503))
    assert passes(answer(429))
    assert not passes(answer(404))
    assert not passes(answer(401))
    assert not passes(OfflineModeIsEnabled("HF_HUB_OFFLINE"))


def test_what_is_at_the_bottom_of_it_decides() -> None:
    def wrapped(inner: BaseException, outer: BaseException) -> BaseException:
        def work() -> None:
            raise outer from inner

        return raised(work)

    blip = ConnectionResetError(errno.ECONNRESET, "x")
    assert passes(wrapped(blip, LocalEntryNotFoundError("not here, and the hub can't be asked")))
    assert passes(wrapped(blip, UserError("student: can't be read")))
    assert not passes(wrapped(OSError(errno.ENOSPC, "No space left on device"), ValueError("x")))
    assert not passes(wrapped(ValueError("x"), UserError("lr: too large")))
    assert not passes(UserError("lr: too large"))
    assert not passes(None)


@pytest.mark.parametrize(("number", "right"), [(errno.ESTALE, True), (errno.ENOENT, False)])
def test_what_a_rank_raised(number: int, right: bool) -> None:
    error = RayTaskError("stream", "traceback", OSError(number, "x"))
    assert passes(error) is right
    assert passes(error.as_instanceof_cause()) is right

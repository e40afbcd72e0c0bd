"""HTTP to the hub: its address, its session, and its errors as one sentence each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from dllama_zmq.errors import DllamaError, HubError, UsageError

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

_OFFLINE_ADVICE = "models that were pulled before need no hub: --offline, or HF_HUB_OFFLINE=1"


def load_settings() -> None:
    """Read the HF_... variables of the environment. Raises UsageError if one of them is wrong."""
    try:
        import huggingface_hub.constants  # noqa: F401
    except ValueError as error:
        raise UsageError(f"an HF_... variable must be a number and is not ({error}); unset it") from error


def endpoint() -> str:
    """The hub's address for messages, without user name and password."""
    from huggingface_hub import constants

    return _shown_url(constants.ENDPOINT)


def session() -> httpx2.Client:
    """huggingface_hub's HTTP session, which uses the environment's proxies. Raises UsageError for an invalid proxy."""
    from huggingface_hub import get_session

    try:
        return get_session()
    except (ValueError, ImportError) as error:  # for an invalid URL, or a SOCKS proxy without its package
        raise UsageError(
            f"the proxy cannot be used ({reason(error)}); check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY"
        ) from error


def headers() -> dict[str, str]:
    """The headers of a request, with the user's token if there is one. Raises UsageError for a malformed token."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, says its reference

    token = get_token()
    # Checked here, because the HTTP client's error would print the token.
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError("the token has a character that no token has; set HF_TOKEN again, or run `hf auth login`")
    return {**build_hf_headers(library_name="dllama-zmq"), "Accept-Encoding": "identity"}


@contextmanager
def hub_errors(repo: str, revision: str) -> Iterator[None]:
    """Turn the session's errors into HubError, or UsageError for a wrong name."""
    import httpx2  # the client of huggingface_hub's sessions
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except HfHubHTTPError as error:
        raise _refused(error, repo, revision) from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{repo}: nothing was requested, because HF_HUB_OFFLINE is set; unset it") from error
    except httpx2.ProxyError as error:
        raise HubError(
            f"the proxy on the way to {endpoint()} refuses ({reason(error)}); check HTTPS_PROXY and NO_PROXY"
        ) from error
    except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
        raise UsageError(f"{endpoint()} cannot be used ({reason(error)}); give HF_ENDPOINT as https://HOST") from error
    except httpx2.TimeoutException as error:
        raise HubError(
            f"{_host(error)} does not answer in time; try again, or set HF_ENDPOINT to a mirror; {_OFFLINE_ADVICE}"
        ) from error
    except httpx2.TransportError as error:
        raise HubError(
            f"{_host(error)} cannot be reached ({reason(error)}); check the network{_proxy_too()}, try again, or set "
            f"HF_ENDPOINT to a mirror; {_OFFLINE_ADVICE}"
        ) from error
    except httpx2.TooManyRedirects as error:
        raise HubError(f"{endpoint()} redirects without end; check HF_ENDPOINT") from error


def reason(error: BaseException) -> str:
    """The message of an error on one line, at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def is_transient(error: HfHubHTTPError) -> bool:
    """Whether the same request may succeed later."""
    return error.response.status_code >= 500 or error.response.status_code == 408


class RateLimitWait:
    """Waits as long as a hub that limits requests asks (HTTP 429), at most `max_s` in all."""

    def __init__(self, on_wait: Callable[[str], None], max_s: float = 900.0) -> None:
        self._on_wait, self._left_s = on_wait, max_s

    def wait(self, error: HfHubHTTPError) -> bool:
        """Wait until the hub accepts requests; False if it does not say when, or that is too late."""
        wait_s = retry_after_s(error)
        if wait_s is None or wait_s > self._left_s:
            return False
        self._left_s -= wait_s
        self._on_wait(f"{endpoint()} has had too many requests from here and asks to wait {wait_s:.0f} s; waiting")
        time.sleep(wait_s)
        return True


def retry_after_s(error: HfHubHTTPError) -> float | None:
    """Seconds to wait after HTTP 429, at least 1, from the headers Retry-After or RateLimit; None without them.

    Sources: RFC 9110 §10.2.3; https://huggingface.co/docs/hub/rate-limits
    """
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # public, says its reference

    if error.response.status_code != 429:
        return None
    asked = str(error.response.headers.get("Retry-After", "")).strip()
    if asked.isascii() and asked.isdecimal():
        return max(1.0, float(asked))
    if asked:
        try:
            until = parsedate_to_datetime(asked)
        except ValueError:
            return None
        return max(1.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    limit = parse_ratelimit_headers(error.response.headers)
    return None if limit is None else max(1.0, float(limit.reset_in_seconds))


def _refused(error: HfHubHTTPError, repo: str, revision: str) -> DllamaError:
    from huggingface_hub import get_token

    status = error.response.status_code
    code, message = (str(error.response.headers.get(f"X-Error-{word}", "")) for word in ("Code", "Message"))
    url, has_token = f"{endpoint()}/{repo}", get_token() is not None
    sign_in = "set HF_TOKEN (or run `hf auth login`)"
    if code == "GatedRepo":
        only = "; your token is valid, so only the licence is missing" if has_token and status == 403 else ""
        return HubError(f"{repo} needs your consent: accept its licence at {url} and {sign_in}{only}")
    if code == "RevisionNotFound":
        return UsageError(
            f"{repo} has no branch, tag or commit {revision!r}; see {url}, or leave --revision out for main"
        )
    if code == "EntryNotFound":
        return HubError(f"{url} no longer has a file that it listed a moment ago; run the command again")
    if status == 401 and (has_token or message.startswith("Invalid credentials")):
        return HubError(f"{endpoint()} does not accept your token for {repo}; check the name, and {sign_in}")
    if status in (401, 404):
        return UsageError(f"there is no public model {url}; check its name, or, if it is private, {sign_in}")
    if status == 403:
        return HubError(f"{endpoint()} denies access to {repo}: accept its licence at {url} and {sign_in}")
    if status == 429:
        wait_s = retry_after_s(error)
        when = "some minutes" if wait_s is None else f"{wait_s:.0f} s"
        return HubError(f"{endpoint()} has had too many requests from here; try again in {when}, or {sign_in}")
    if status >= 500:
        return HubError(
            f"{endpoint()} failed (HTTP {status}); try again later, or set HF_ENDPOINT to a mirror; {_OFFLINE_ADVICE}"
        )
    return HubError(f"{endpoint()} refuses {repo} (HTTP {status} {message}); check HF_ENDPOINT and the name")


def _host(error: object) -> str:
    """The endpoint, or the host of a redirect that failed."""
    try:
        url = error.request.url  # type: ignore[attr-defined]
        host = str(url.host)
    except (AttributeError, RuntimeError):  # not every error has a request
        return endpoint()
    return endpoint() if host == urlsplit(endpoint()).hostname else f"{host} (where {endpoint()} sends downloads)"


def _proxy_too() -> str:
    from urllib.request import getproxies  # in here: it brings http and ssl, and most commands ask no hub

    variables = [f"{scheme.upper()}_PROXY" for scheme in sorted(getproxies()) if scheme != "no"]
    return f" and the proxy of {' and '.join(variables)}" if variables else ""


def _shown_url(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

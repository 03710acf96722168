"""Storage errors that no waiting changes: missing credentials, unknown hosts, refusals.

Remote file systems raise classes of their own (botocore, google.auth, aiohttp), some with the cause behind them."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

from tgm_scale.runtime.command import USER_MISTAKE

PASSING = (408, 425, 429)  # those of HTTP's 4xx that may pass
_DEPTH = 8  # causes of an error to examine
# by name: these packages are extras
_NO_CREDENTIALS = {
    "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ConfigNotFound", "ConfigParseError",
    "InvalidConfigError", "NoAuthTokenError", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "LoginTokenLoadError",
    "UnknownCredentialError", "DefaultCredentialsError",
}  # fmt: skip
_REMEDIES = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile of ~/.aws/credentials; for a "
    "public bucket FSSPEC_S3_ANON=true",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account, or log in with gcloud auth "
    "application-default login; for a public bucket FSSPEC_GS_TOKEN=anon",
    "http": "the address wants a login (http://user:password@host/...) or a signature",
}


class PermanentError(OSError):
    """Error of the storage that another attempt would not change."""


class Refused(OSError):
    """Refusal to read anything there, now or later: another start would meet it again."""

    exit_code = USER_MISTAKE  # of the command


def remedy(url: str) -> str:
    """Return a text on how a storage gets its credentials."""
    protocol = url.partition("://")[0]
    protocol = {"gcs": "gs", "https": "http"}.get(protocol, protocol)
    return _REMEDIES.get(protocol, f"see what fsspec wants for {protocol}")


def refusal(error: BaseException, url: str, opened: bool) -> OSError | None:
    """Return the error to raise in place of a lasting one; None for one that may pass.

    opened: whether the storage was read before. Then host names and credentials were resolved once, and the failure
    may be a temporary one of their servers (DNS, those of roles)."""
    words = f"{url}: {type(error).__name__}: {error}"
    for cause in _causes(error):
        status = _of_botocore(cause)
        if status in (401, 403) or getattr(cause, "status", None) in (401, 403):  # aiohttp's: any other may be garbled
            return PermissionError(f"{words}: {remedy(url)}")
        if isinstance(cause, ssl.SSLCertVerificationError) or type(cause).__name__ == "SSLError":
            return Refused(f"{words}: the server's certificate is not trusted: SSL_CERT_FILE names those that are")
        if status is not None and 400 <= status < 500 and status not in PASSING:
            return PermanentError(words)
        if not opened and type(cause).__name__ in _NO_CREDENTIALS:
            return Refused(f"{words}: {remedy(url)}")
        if type(cause).__name__ == "TooManyRedirects":  # aiohttp's
            return Refused(f"{url}: its server redirects in a circle: correct the address")
        if not opened and isinstance(cause, socket.gaierror) and cause.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            return Refused(f"{words}: no such host: correct the address, or AWS_ENDPOINT_URL where that is its host")
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(_DEPTH):
        if error is None:
            return
        yield error
        inner = getattr(error, "os_error", None)  # aiohttp keeps the system's own here
        if isinstance(inner, OSError) and inner is not error:
            yield inner
        error = error.__cause__ or error.__context__


def _of_botocore(error: BaseException) -> int | None:
    """Return the HTTP status in an answer of S3."""
    answer = getattr(error, "response", None)
    answer = answer.get("ResponseMetadata") if isinstance(answer, dict) else None
    answer = answer.get("HTTPStatusCode") if isinstance(answer, dict) else None
    return answer if isinstance(answer, int) else None

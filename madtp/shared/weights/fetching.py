"""A file from the network: whole and with the bytes that were published, or not at all. Only when somebody asks."""

import hashlib
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

from madtp.method.errors import UserError
from madtp.shared.files import prepare_output, whole_file

CHUNK = 2**20


def fetch(address: str, path: Path, digest: str | None = None, size: int | None = None) -> None:
    """Fetches a file into a folder, which is made where it is missing.

    Args:
        address: of the file.
        path: where it goes.
        digest: its published SHA-256, None where nobody says it.
        size: its published length in bytes, likewise.

    Raises:
        UserError: no connection, a folder that cannot be written, or other bytes than published.
    """
    prepare_output(path.parent)
    sha, length = hashlib.sha256(), 0
    with opened(address, path) as response, whole_file(path, size or 0) as output:
        while piece := _piece(response, address, path):
            sha.update(piece)
            length += len(piece)
            output.write(piece)
        if size not in (None, length) or digest not in (None, sha.hexdigest()):
            raise UserError(f"{address}: {length} bytes with other contents than published; try again")


def opened(address: str, what: object):
    """The answer from an address, to be read; `what` is fetched, for the error.

    Raises:
        UserError: there is none.
    """
    try:
        return urllib.request.urlopen(address)
    except HTTPError as error:
        absent = error.code in (401, 403, 404)
        reason = "there is no such thing, or it wants a login" if absent else error.reason
        raise _unfetched(what, address, reason) from error
    except (OSError, ValueError) as error:  # the latter of what is no address
        raise _unfetched(what, address, error) from error


def _piece(response, address: str, path: Path) -> bytes:
    """The next bytes; here, since `whole_file` takes every other error for one of the disk."""
    try:
        return response.read(CHUNK)
    except OSError as error:
        raise _unfetched(path, address, error) from error


def _unfetched(what: object, address: str, reason: object) -> UserError:
    return UserError(f"cannot fetch {what} from {address}: {reason}; fetch it by other means")

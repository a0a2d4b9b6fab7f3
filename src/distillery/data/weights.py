"""Fetch weights by their address, once, to where torch keeps those of its hub."""

import os
from pathlib import Path

from distillery.data.download import Remote, fetch_file
from distillery.errors import UserError
from distillery.experiment.address import Address, parse_address
from distillery.results import file_hash

# In bytes: more than any classifier's weights have.
LARGEST = 2**35


def fetched(weights: str) -> str:
    """What `weights` names, as it is; of an address the file that its bytes lie in, fetched if they are not there yet.

    Raises:
        UserError: they cannot be fetched, or are others than the address says.
    """
    try:
        address = parse_address(weights)
    except ValueError as error:
        raise UserError(f"{weights}: {error}") from None
    return weights if address is None else str(_fetch(address))


def weights_folder() -> Path:
    """torch's own folder for weights that were downloaded: under TORCH_HOME, by default ~/.cache/torch."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(os.environ.get("TORCH_HOME") or cache).expanduser() / "hub" / "checkpoints"


def _fetch(address: Address) -> Path:
    target = weights_folder() / address.file_name
    if target.is_file() and file_hash(target) != address.sha256:
        print(f"warning: {target}: damaged; fetching it again", flush=True)
        target.unlink()
    cures = (
        "run this command where there is a network",
        "look at the address, and whether what stands behind # is the checksum of the file you mean",
        "fetch it by hand and name the file",
    )
    fetch_file(Remote(target.name, address.url, f"sha256:{address.sha256}", None, LARGEST, cures), target)
    return target

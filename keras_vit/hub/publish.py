"""Uploads files to the Hugging Face hub, with huggingface_hub."""

import sys
from pathlib import Path

from keras_vit.data.decode import one_line

ALLOWED = "a name that your token may write to"
UNREACHABLE = ("ConnectError", "ConnectTimeout", "ReadError", "ReadTimeout", "WriteError", "ProxyError")  # of the client's library


def upload(folder: Path, repo: str, *, private: bool = False) -> str:
    """Makes a repository of models, unless it is there, and uploads a folder in one commit. Returns its address.

    The token is the one that huggingface_hub finds: of `hf auth login`, or in HF_TOKEN.

    Args:
        folder: The files.
        repo: "user/name".
        private: Whether a repository that is made is private.

    Raises:
        ValueError: If the hub cannot be reached, or refuses.
    """
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars

    api = huggingface_hub.HfApi(library_name="keras_vit")
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        address = str(api.create_repo(repo, private=private or None, exist_ok=True))
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload of keras-vit publish")
    except Exception as error:  # of any package that huggingface_hub uses
        raise ValueError(f"hub: received {repo!r}; allowed: {ALLOWED} ({reason(error, api.endpoint)})") from None
    return address


def reason(error, endpoint):
    """Why an upload failed, in one line. The first cause counts: of a file's upload huggingface_hub says only that it failed."""
    while error.__cause__ is not None and getattr(error, "response", None) is None:
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        words = {
            401: "no token, or one that is not valid: hf auth login",
            403: "the token may not write there",
            404: "it is not there",
        }
        return f"{endpoint} answers {status}: {words.get(status, one_line(error))}"
    if isinstance(error, OSError) or type(error).__name__ in UNREACHABLE:
        return f"{endpoint} cannot be reached: {one_line(error)}"
    return f"{type(error).__name__}: {one_line(error)}"

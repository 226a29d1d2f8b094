"""pip's settings for package indexes, as uv takes them: it reads neither pip.conf nor ``PIP_*``."""

import ast
import os
import subprocess
from pathlib import Path

#: uv's variable for each of pip's options, and what uv puts between several values.
VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "no-index": ("UV_NO_INDEX", " "),
    "no-cache-dir": ("UV_NO_CACHE", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
}
#: The variables that name more places than the one index.
ADDITIONAL = ("UV_INDEX", "UV_FIND_LINKS")


def pip_settings(python: Path) -> dict[str, str]:
    """pip's options and their values: its files', those of ``pip install``, then ``PIP_*``."""
    command = [str(python), "-m", "pip", "config", "list"]
    listed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    settings = {}
    for section in ("global.", "install.", ":env:."):
        for line in listed.splitlines():
            key, _, value = line.partition("=")
            if key.startswith(section):
                settings[key.removeprefix(section)] = ast.literal_eval(value)
    return settings


def uv_environment(python: Path) -> dict[str, str]:
    """The variables of a process that runs uv; what is set of uv's own wins."""
    # pip takes the best version of all indexes. uv would take the first index that has the package,
    # and PyTorch's has old versions of many.
    variables = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_PYTHON_DOWNLOADS": "never"}
    for option, value in pip_settings(python).items():
        if option in VARIABLES:
            name, separator = VARIABLES[option]
            variables[name] = separator.join(value.split())
    return variables | os.environ

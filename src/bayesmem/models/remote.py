"""What a saved folder needs so that ``trust_remote_code=True`` loads it where nobody imported bayesmem."""

from pathlib import Path

FILE = "modeling_bayesmem.py"
AUTO_MAP = {
    "AutoConfig": "modeling_bayesmem.BayesMemConfig",
    "AutoModelForCausalLM": "modeling_bayesmem.BayesMemForCausalLM",
}
CODE = '''\
"""Loads this folder by the Auto classes with ``trust_remote_code=True``.

The model's code is the bayesmem package, which must be installed: pip install 'bayesmem[experiments]'.
"""

from bayesmem.models import BayesMemConfig, BayesMemForCausalLM

__all__ = ["BayesMemConfig", "BayesMemForCausalLM"]
'''


def write_code(folder: str | Path) -> None:
    """Put the file that ``AUTO_MAP`` names beside the weights."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(CODE)

"""The machine code of a recorded launch, for a GPU that need not be there, and what is wrong with it."""

import re
import subprocess
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernel_launches import Launch

TOOLS = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin"
INSTRUCTION = re.compile(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?(?P<text>[A-Z][^;]*);")
ADDRESS = re.compile(r"\[[^\[\]]*\bR1\b[^\[\]]*\]")
# What moves the stack: by itself and constants alone. RZ is zero; PT and !PT are predicates that say nothing.
MOVES = re.compile(r"[\w.]+ R1(, (R1|!?PT|RZ|-?0x[0-9a-f]+|-?[0-9]+|c\[0x[0-9a-f]+\]\[0x[0-9a-f]+\]))+$")


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a launch was compiled to.

    Attributes:
        registers: of a thread.
        stack: bytes of a thread, of which spilled registers take most.
        spills: instructions that store to it.
        shared: bytes of shared memory of a program.
        misuses: instructions that take the stack pointer for a number.
        error: why there is nothing of all that.
    """

    registers: int = 0
    stack: int = 0
    spills: int = 0
    shared: int = 0
    misuses: list[str] = field(default_factory=list)
    error: str | None = None


def misuses(sass: str) -> list[str]:
    """Instructions of a listing by nvdisasm in which R1, the stack pointer, is neither an address nor moved.

    Only where R1 is named: of an operand of several registers, which is named by its first, no more is known.
    """
    found = []
    for match in INSTRUCTION.finditer(sass):
        text = " ".join(match["text"].split())
        if re.search(r"\bR1\b", ADDRESS.sub("", text)) and not MOVES.match(text):
            found.append(text)
    return found


def compiled(launch: Launch, capability: int) -> Compiled:
    """Compile for this compute capability, 90 for 9.0, and look at what comes out."""
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    try:
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    except Exception as error:  # of whatever part of the compiler: all are findings
        return Compiled(error=f"{type(error).__name__}: {error}"[:300])
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        sass, usage = _told("nvdisasm", "-c", file.name), _told("cuobjdump", "-res-usage", file.name)
    used = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if used is None or not INSTRUCTION.search(sass):
        raise RuntimeError(f"the tools of Triton {triton.__version__} tell nothing of {launch.name}: {usage[:200]}")
    registers, stack = map(int, used.groups())
    spills = len(re.findall(r"\bSTL\b", sass))
    return Compiled(registers, stack, spills, made.metadata.shared, misuses(sass))


def _told(tool: str, *args: str) -> str:
    return subprocess.run([TOOLS / tool, *args], capture_output=True, text=True, check=True).stdout


@lru_cache
def assembler() -> str:
    """Version of Triton's ptxas."""
    found = re.search(r"V(\d[\d.]*)", _told("ptxas", "--version"))
    return "unknown" if found is None else found[1]

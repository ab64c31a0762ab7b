"""Work that the machine code of one kernel says it does: executed instructions, tensor core products, bytes fetched.

The code is split into its loop and the rest: executed = rest + trips x loop. A compiler may have unrolled steps of the
loop, so trips are those that make the products on tensor cores as many as the kernel must do, where it does any.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

WARP = 32
WARPGROUP = 4
PRODUCTS = re.compile(r"\b(HMMA|HGMMA)\.(\w+)")
# Extents of a product by its name in the code: m, n, k.
WARP_PRODUCTS = {"16816": (16, 8, 16), "1688": (16, 8, 8), "1684": (16, 8, 4), "16832": (16, 8, 32)}
FETCHES = re.compile(r"\b(?:LDGSTS|LDG)((?:\.\w+)*)")
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


class Instruction(NamedTuple):
    address: int
    text: str


class Work(NamedTuple):
    """Work of one warp, from its first instruction to its last."""

    instructions: float
    multiplications: float
    """On tensor cores; a warp has a quarter of what its warp group does together."""
    bytes: float
    """Fetched from beyond the multiprocessor; lanes that are masked or hold copies of others' values count too."""
    is_group_wide: bool
    """Whether products are a warp group's (wgmma), which alone reach the full rate of capability 9.0."""


def instructions(sass: str) -> list[Instruction]:
    """Return the kernel's instructions, without the padding behind its end."""
    found = re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.+?)\s*;", sass, flags=re.MULTILINE)
    while found and found[-1][1] == "NOP":
        found.pop()
    return [Instruction(int(address, 16), text) for address, text in found]


def loops(code: list[Instruction]) -> Iterator[tuple[int, int]]:
    """Yield (first, last) addresses of each loop: a branch back, and not to itself, which ends the code."""
    for address, text in code:
        if (branch := re.search(r"\bBRA(?:\.\w+)*\b.*?(0x[0-9a-f]+)", text)) and int(branch[1], 16) < address:
            yield int(branch[1], 16), address


def work(sass: str, steps: float = 1.0, multiplications: float | None = None) -> Work:
    """Count what a warp executes.

    steps: trips of the loop where the code has no tensor core products. multiplications: a warp's, on tensor cores.
    """
    code = instructions(sass)
    first, last = max(loops(code), key=lambda loop: loop[1] - loop[0], default=(0, -1))
    loop = [text for address, text in code if first <= address <= last]
    rest = [text for address, text in code if not first <= address <= last]
    in_loop, in_rest = _total(_multiplications, loop), _total(_multiplications, rest)
    trips = steps if multiplications is None or not in_loop else max(0.0, (multiplications - in_rest) / in_loop)
    # Copies ahead of a pipelined loop are those that its last trips leave out.
    fetching = rest if not _total(_copied, loop) else [text for text in rest if not _copied(text)]
    return Work(
        len(rest) + trips * len(loop),
        in_rest + trips * in_loop,
        _total(_fetched, fetching) + trips * _total(_fetched, loop),
        any("HGMMA" in text for _, text in code),
    )


def fewest_executed(sass: str, executed: Mapping[str, int]) -> int:
    """Return the fewest instructions in which a turn of one of the loops executes each of these so often.

    executed: {regular expression at an instruction's beginning, without its predicate: times}, copies, products and
    stores, say, of a full tile: which path through the branches is taken, and how often the loops inside run, follows.
    """
    code = instructions(sass)
    at = {address: index for index, (address, _) in enumerate(code)}
    opcodes = [re.sub(r"^@\S+\s+", "", text) for _, text in code]
    counted = [tuple(int(bool(re.match(p, opcode))) for p in executed) for opcode in opcodes]
    found = []
    for head, end in loops(code):
        if length := _shortest_turn(code, at, counted, at[head], at[end], tuple(executed.values())):
            found.append(length)
    if not found:
        raise ValueError(f"no loop executes {dict(executed)}")
    return min(found)


def _shortest_turn(
    code: list[Instruction],
    at: dict[int, int],
    counted: list[tuple[int, ...]],
    first: int,
    last: int,
    target: tuple[int, ...],
) -> int | None:
    """Search breadth first from the loop's first instruction to its last; a state is where, and what was counted."""
    begin = first, counted[first]
    seen, states, length = {begin}, [begin], 1
    while states:
        if (last, target) in states:
            return length
        following = []
        for index, counts in states:
            for next_index in _successors(code, at, index):
                if not first <= next_index <= last or index == last:
                    continue  # out of the loop, or another turn
                sums = tuple(map(sum, zip(counts, counted[next_index], strict=True)))
                state = next_index, sums
                if state not in seen and all(s <= w for s, w in zip(sums, target, strict=True)):
                    seen.add(state)
                    following.append(state)
        states, length = following, length + 1
    return None


def _successors(code: list[Instruction], at: dict[int, int], index: int) -> list[int]:
    text = code[index].text
    branch = re.match(r"(@\S+\s+)?BRA(?:\.\w+)*\s+(.*?)(0x[0-9a-f]+)", text)
    if branch is None:
        return [] if text.startswith("EXIT") else [index + 1]
    taken = [at[int(branch[3], 16)]] if int(branch[3], 16) in at else []
    return [*taken, index + 1] if branch[1] or branch[2] else taken


def _total(measure: Callable[[str], float], code: list[str]) -> float:
    return sum(map(measure, code))


def _copied(text: str) -> bool:
    return "LDGSTS" in text


def _multiplications(text: str) -> float:
    product = PRODUCTS.search(text)
    if product is None:
        return 0.0
    if product[1] == "HMMA":
        m, n, k = WARP_PRODUCTS[product[2]]
        return m * n * k
    m, n, k = map(int, product[2].split("x"))
    return m * n * k / WARPGROUP


def _fetched(text: str) -> float:
    fetch = FETCHES.search(text)
    if fetch is None:
        return 0.0
    return WARP * next((WIDTHS[m] for m in fetch[1].split(".") if m in WIDTHS), 4)

"""The field's language: docstrings are whole sentences or noun phrases, and words are PyTorch's and the GAN papers'."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIRST_WORDS = {"Of", "As", "What"}
# A verb is in the imperative: "Return", not "Returns". A noun has another word behind it: "Runs of".
THIRD_PERSON = re.compile(
    r"(Adds|Applies|Builds|Calls|Checks|Computes|Converts|Counts|Creates|Drops|Finds|Follows|Gets|Gives|Keeps|Lets|Loads"
    r"|Makes|Moves|Prints|Puts|Raises|Reads|Refuses|Removes|Replaces|Resumes|Returns|Runs|Saves|Says|Sets|Shows|Starts"
    r"|Stops|Takes|Tells|Trains|Tries|Turns|Waits|Writes|Yields)\b(?! (of|that|whose|in|tracked) )"
)


# A former word, whole or as a part of a name, and what is said instead.
INSTEAD = {
    "verbs?": "command",
    "pictures?": "image",
    "films?": "video",
    "data sets?": "dataset",
    "(?:go|goes|going|went|gone)[ _]on": "resume, continue",
    "judge[sd]?|judging": "evaluate; metric callback",
    "facts?": "metadata",
    "[a-z]+_forms|(?:native|triton|fast|fused|folded|second) forms?": "implementation",
    "(?<!what_)stands_in|stands? in for": "implementation",
    "fallbacks?": "composite, for a formula in plain PyTorch",
    "drew|drawing": "generate, sample, plot",
    "passed[ _]over|asked_impl": "unavailable_reason, requested_impl",
    "forget_weights|prepare_weight|restore_gradient": "invalidate, fold_weight, unfold_gradient",
    "banks?": "filters, weight",
    "out_gate": "activation gradient",
    "of_weights?": "output_mask, needs_dw",
    "wanted": "output_mask, requested",
    "gradients_through": "fused_backward",
    "engine_wants": "will_need_grad",
    "separate_leaf": "as_nonleaf_view",
    "last_order": "no_third_derivative",
    "DiscriminatorCritic": "BoundDiscriminator",
    "CapturedStep": "CUDAGraphStep",
    "ReadAhead": "Prefetcher",
    "LateReading": "AsyncScalar",
    "Observers?": "Loggers",
    "handed_out": "batch_state",
    "written_aside": "atomic_write",
    "absorbed|overwriting": "inlined, aliasing",
    "plain_swd": "numpy_swd",
    "peers?": "third_party",
}
# The table has more words that stay where they mean something else, and so are looked for by their old neighbours alone
# or not at all: a form of a formula or an option; fields that stand in a file; random numbers, which are drawn; what is
# asked, above, below, turned, apart, live, last, a choice, a pair; gates of benchmarks and of augmentations; the GAN
# zoo, a codebase's name. `kept_weights` and `pggan_fast._moved` keep former names working.
# Folders in which the words are still being replaced. A word that is gone from them leaves this table.
LEFT: dict[tuple[str, ...], set[str]] = {}


def docstrings(path: Path) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds))
    return [text for node in nodes if (text := ast.get_docstring(node))]


def offenders(folder: Path) -> list[str]:
    return [
        f"{path.relative_to(folder)}: {text.splitlines()[0]}"
        for path in sorted(folder.rglob("*.py"))
        for text in docstrings(path)
        if text.split()[0].strip(",.:;") in FIRST_WORDS or THIRD_PERSON.match(text)
    ]


def lines_with(word: str, text: str) -> list[str]:
    """Return the lines with `word`, alone or between the underscores and capitals of a name."""
    pattern = re.compile(rf"(?i:(?<![a-z])(?:{word})(?![a-z]))|(?<=[a-z])(?:{word.capitalize()})(?![a-z])")
    if not pattern.search(text):
        return []
    return [f"{number}: {line.strip()}" for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)]


def sources() -> list[tuple[str, str]]:
    """The name and text of every tracked file that people of this project wrote."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    suffixes = {"", ".py", ".md", ".toml", ".cpp", ".h", ".cu", ".cuh"}
    skipped = ("LICENSE", "tests/golden/", "tests/test_language.py")
    names = [name for name in names if Path(name).suffix in suffixes and not name.startswith(skipped)]
    return [(name, (ROOT / name).read_text(encoding="utf-8")) for name in names if (ROOT / name).is_file()]


@pytest.mark.parametrize("folder", ["pggan_fast", "kernels", "bench", "experiments", "tests"])
def test_docstrings_begin_with_a_sentence(folder):
    found = offenders(ROOT / folder)
    assert not found, "\n".join(found)


def test_one_that_does_not_is_found(tmp_path):
    (tmp_path / "a.py").write_text('def f():\n    """What f does."""\n\n\ndef g():\n    """Whatever."""\n')
    (tmp_path / "b.py").write_text('"""Returns x."""\n\n\ndef g():\n    """Runs of g."""\n')
    assert offenders(tmp_path) == ["a.py: What f does.", "b.py: Returns x."]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout: git knows the files")
def test_words_are_the_fields():
    left = {(folder, word) for folders, words in LEFT.items() for folder in folders for word in words}
    found = [
        f"{name}:{line}  (say: {instead})"
        for name, text in sources()
        for word, instead in INSTEAD.items()
        if not any((str(parent), word) in left for parent in Path(name).parents)
        for line in lines_with(word, text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("text", ["pictures = 3", "the_picture", "a Picture.", "to_picture()", "SamplePictures"])
def test_a_word_is_found_in_names_and_sentences(text):
    assert lines_with("pictures?", text) == [f"1: {text}"]


def test_a_word_within_another_is_none():
    assert lines_with("facts?|films?", "factors of an artifact; filmstrips") == []

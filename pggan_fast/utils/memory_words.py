"""Words of errors that mean that memory ran out; torch need not be loaded for them."""

# Errors that have no class of their own: of the loader, torch's allocator, C++, threads and decoders.
WORDS = (
    "failed to map segment",
    "annot allocate memory",
    "can't allocate memory",
    "bad_alloc",
    "can't start new thread",
    "out of memory",
    "Unable to allocate",
    "could not create a primitive",  # oneDNN does not say why
    "could not execute a primitive",
    "could not create a memory",
)
# The loader's of a disk mounted noexec, oneDNN's of what it has no code for.
OTHER_REASONS = ("not permitted", "primitive descriptor")


def says_no_memory(text: str) -> bool:
    """Return whether an error's text says that memory ran out."""
    return any(words in text for words in WORDS) and not any(words in text for words in OTHER_REASONS)

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
)


def says_no_memory(text: str) -> bool:
    """Return whether an error's text says that memory ran out; a disk mounted noexec fails to map segments too."""
    return any(words in text for words in WORDS) and "not permitted" not in text

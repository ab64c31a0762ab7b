"""`save_pretrained`, `from_pretrained` and `push_to_hub` of generators, as on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

Loaded = TypeVar("Loaded", bound="HubMethods")


class HubFiles(Protocol):
    """The files of a generator on the Hub: `pggan_fast.interop.hub`, which checks what it reads."""

    def repository(self, network: Any, metadata: dict[str, Any] | None, card: str | None) -> Any: ...

    def load(self, name: str | Path, **options: Any) -> Any: ...


class HubMethods:
    """Methods of huggingface_hub's ModelHubMixin; only safetensors and JSON are written and read."""

    _hub: ClassVar[HubFiles]  # pggan_fast.interop.hub sets it: reading files is a floor above networks
    hub_metadata: dict[str, Any] | None = None  # what a loaded generator came with

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        metadata: dict[str, Any] | None = None,
        card: str | None = None,
        **options: Any,
    ) -> str | None:
        """Write model.safetensors, config.json and a model card into a folder.

        Args:
            metadata: classes, images, resolution and alpha; default those that the generator was loaded with.
            card: Markdown text of README.md below its title, unless there is a README.md already.
            options: `push_to_hub`, `repo_id` and others of huggingface_hub's ModelHubMixin.

        Raises:
            UserError: huggingface_hub, the extra `hub`, is not installed, or the disk is full.
        """
        return self._hub.repository(self, metadata, card).save_pretrained(save_directory, **options)

    def push_to_hub(
        self, repo_id: str, *, metadata: dict[str, Any] | None = None, card: str | None = None, **options: Any
    ) -> str:
        """Upload what `save_pretrained` writes to the repository `repo_id`, and return the commit's address.

        `options` are those of huggingface_hub's ModelHubMixin: `private`, `token`, `branch`, `commit_message`, ...
        """
        return self._hub.repository(self, metadata, card).push_to_hub(repo_id, **options)

    @classmethod
    def from_pretrained(cls: type[Loaded], name: str | Path, **options: Any) -> Loaded:
        """Return the generator in a folder or a repository of the Hub, on the CPU, in eval mode.

        `options` are `revision`, `token`, `cache_dir`, `force_download` and `local_files_only`. Nothing is unpickled.
        Its classes, resolution and alpha are in `hub_metadata`.

        Raises:
            UserError: the files are damaged or those of another network, or huggingface_hub is not installed.
        """
        network = cls._hub.load(name, **options)
        if not isinstance(network, cls):
            raise TypeError(f"{name}: holds a {type(network).__name__}, not a {cls.__name__}")
        return network

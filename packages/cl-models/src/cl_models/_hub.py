"""The Hugging Face Hub: repositories, and folders like them, of configuration, weights and model card."""

from pathlib import Path
from typing import Any, Self

from cl_models._weights import header_of, load_encoder, save_encoder

WEIGHTS = "model.safetensors"  # where the Hub's own tools look
CARD_ONLY = ("license", "repo_id")  # the rest of what a card is told goes to the weights' header too
TORCHVISION = {"width": 1, "stem": "imagenet", "variant": "torchvision", "selective_kernel": False, "in_channels": 3}
CARD = """---
{{ card_data }}
---

# ResNet-{{ config.depth }} encoder{% if header.method %}, {{ header.method }}{% endif %}

Images in, {{ feature_dim }} features out; written by cl-models. What the weights' file notes:

| | |
|---|---|
{% for key, text in header.items() -%}
| {{ key }} | {{ text }} |
{% endfor %}
{%- if header.normalisation %}
Pixels are in [0, 1]; normalisation is what they were shifted and divided by, none: they go in as they are.
{% endif %}
```python
from cl_models import ResNet

encoder = ResNet.from_pretrained("{{ repo_id }}")  # or the path of a folder; comes in eval mode
features = encoder(images)  # (n, {{ config.in_channels }}, height, width) -> (n, {{ feature_dim }})
```
{% if torchvision %}
torchvision's and timm's `resnet{{ config.depth }}` read the weights too, all but their classifier:

```python
import torch
import torchvision
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

network = torchvision.models.resnet{{ config.depth }}()
network.load_state_dict(load_file(hf_hub_download("{{ repo_id }}", "model.safetensors")), strict=False)
network.fc = torch.nn.Identity()
```
{% endif %}"""

try:
    from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin, hf_hub_download
except ImportError as error:
    _REASON = str(error)

    class HubMixin:
        """Stands in for the mixin and says what is missing once it is needed."""

        def __init_subclass__(cls, **keywords: object) -> None:
            super().__init_subclass__()  # the keywords are the mixin's

        def save_pretrained(self, *args: object, **keywords: object) -> Any:
            """Raise ImportError."""
            raise _missing("save_pretrained")

        @classmethod
        def from_pretrained(cls, *args: object, **keywords: object) -> Any:
            """Raise ImportError."""
            raise _missing("from_pretrained")

        def push_to_hub(self, *args: object, **keywords: object) -> Any:
            """Raise ImportError."""
            raise _missing("push_to_hub")

    def _missing(name: str) -> ImportError:
        return ImportError(f"`{name}` needs huggingface_hub: pip install cl-models[hub] ({_REASON}).")

else:

    class HubMixin(  # type: ignore[call-arg, no-redef]  # mypy does not see the mixin
        PyTorchModelHubMixin,
        library_name="cl-models",
        pipeline_tag="image-feature-extraction",
        tags=["contrastive-learning", "self-supervised-learning", "resnet"],
        model_card_template=CARD,
    ):
        """`save_pretrained`, `from_pretrained` and `push_to_hub`, as Hugging Face's mixin has them.

        `from_pretrained` takes a repository's name or a folder and returns the network in eval mode, on the CPU: call
        `train()` to go on training. It downloads config.json and model.safetensors, nothing that could run code, and
        refuses weights of other names or shapes.

        Both ways of writing take `model_card_kwargs`: the keywords of `save_encoder` ("method", "data", "epochs",
        "normalisation", "metadata"), which go to the weights' header as well as to the card, and for the card alone
        "license", of the weights, and "repo_id", to be named in its examples. A card that is in the folder already is
        left alone, as the mixin has it.
        """

        config: dict[str, Any]
        feature_dim: int

        def save_pretrained(
            self, save_directory: str | Path, *, model_card_kwargs: dict[str, Any] | None = None, **keywords: Any
        ) -> str | None:
            """Write config.json, model.safetensors and README.md to a folder."""
            about = {key: value for key, value in (model_card_kwargs or {}).items() if key not in CARD_ONLY}
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            # here, because the mixin's own `_save_pretrained` is not told what goes to the header
            save_encoder(self, Path(save_directory) / WEIGHTS, **about)
            return super().save_pretrained(save_directory, model_card_kwargs=model_card_kwargs, **keywords)

        def push_to_hub(self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **keywords: Any) -> str:
            """Upload what `save_pretrained` writes, in one commit."""
            card = {"repo_id": repo_id if "/" in repo_id else f"OWNER/{repo_id}"} | (model_card_kwargs or {})
            return super().push_to_hub(repo_id, model_card_kwargs=card, **keywords)

        def generate_model_card(self, **about: Any) -> ModelCard:
            """The README.md: what the header notes, and how to load the weights."""
            given = {key: about.pop(key) for key in CARD_ONLY if key in about}
            kind = {key: value for key, value in self.config.items() if key != "depth"}
            fields = self._hub_mixin_info.model_card_data.to_dict()
            return ModelCard.from_template(
                ModelCardData(**fields | {"license": given.get("license", fields.get("license"))}),
                template_str=self._hub_mixin_info.model_card_template,
                config=self.config,
                feature_dim=self.feature_dim,
                header=header_of(self, **about),
                repo_id=given.get("repo_id", "OWNER/NAME"),
                torchvision=kind == TORCHVISION and self.config["depth"] != 200,
            )

        def _save_pretrained(self, save_directory: Path) -> None:
            """Nothing: `save_pretrained` has written the weights."""

        @classmethod
        def _from_pretrained(
            cls,
            *,
            model_id: str,
            revision: str | None,
            cache_dir: str | Path | None,
            force_download: bool,
            local_files_only: bool,
            token: str | bool | None,
            **arguments: Any,
        ) -> Self:
            try:
                encoder = cls(**arguments)
            except TypeError as error:
                raise ValueError(
                    f"{model_id}: config.json and keywords do not make a {cls.__name__}: {error}."
                ) from error
            if Path(model_id).is_dir():
                path = Path(model_id) / WEIGHTS
            else:
                path = hf_hub_download(
                    model_id,
                    WEIGHTS,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            load_encoder(encoder, path)
            return encoder.eval()

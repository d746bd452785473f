"""Which program the decoder layers of an architecture are."""

from __future__ import annotations

from typing import Final

from ftplan.estimators.tape.classic import Bloom, Falcon, Gpt2, GptJ, GptNeoX, Opt
from ftplan.estimators.tape.families import FourNorms, GptOss, Latent, LatentComplex, NormsAfter, Phi, Phi3
from ftplan.estimators.tape.layer import Layer
from ftplan.estimators.tape.modules import Options, Targets
from ftplan.estimators.tape.prompted import Prompted
from ftplan.profiles.model_schema import LayerProfile

LAYERS: Final[dict[str, type[Layer]]] = {
    "gemma2": FourNorms,
    "gemma3": FourNorms,
    "gemma3_text": FourNorms,
    "olmo2": NormsAfter,
    "phi3": Phi3,
    "phi": Phi,
    "gptj": GptJ,
    "gpt_neox": GptNeoX,
    "gpt2": Gpt2,
    "opt": Opt,
    "bloom": Bloom,
    "falcon": Falcon,
    "gpt_oss": GptOss,
    "deepseek_v2": LatentComplex,
    "deepseek_v3": Latent,
}


def layer_program(model_type: str, profile: LayerProfile, options: Options, targets: Targets) -> Layer:
    """The program of one of the layers of an architecture; Llama's where it has no other."""
    if profile.prompt_tokens:
        return Prompted(profile, options, targets)
    return LAYERS.get(model_type, Layer)(profile, options, targets)

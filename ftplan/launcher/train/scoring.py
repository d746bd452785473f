"""One model on all examples: the loss of each completion, and what the model writes in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ftplan.launcher.train.batches import batches, halving
from ftplan.launcher.train.predict_rows import Example
from ftplan.units import GIB, MIB

LOGITS_BYTES: Final = {"cpu": 256 * MIB, "cuda": 2 * GIB}
"""What the logits of one batch may take; on a CPU nothing tells in time that memory runs out."""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Examinee:
    """A model with what it needs to be asked."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        device: torch.device = self.model.device
        return device

    @property
    def padding(self) -> int:
        """A token to pad with; it is masked."""
        found = self.tokenizer.pad_token_id
        return int(found if found is not None else self.tokenizer.eos_token_id or 0)


def losses(examinee: Examinee, examples: Sequence[Example], progress: Progress) -> list[float]:
    """The summed negative log likelihood of each example's completion, in nats."""
    element_bytes = examinee.model.dtype.itemsize
    vocabulary = examinee.model.config.get_text_config().vocab_size
    max_tokens = LOGITS_BYTES[examinee.device.type] // (vocabulary * element_bytes)
    found = [0.0] * len(examples)
    done = 0
    for batch in batches([len(example.tokens) for example in examples], examinee.batch_size, max_tokens):
        sums = halving(lambda rows: _losses(examinee, rows), [examples[index] for index in batch])
        for index, loss in zip(batch, sums, strict=True):
            found[index] = loss
        done += len(batch)
        progress(done)
    return found


def _losses(examinee: Examinee, rows: Sequence[Example]) -> list[float]:
    tokens, mask = _padded(examinee, [row.tokens for row in rows], left=False)
    scored = torch.zeros(mask.shape, dtype=torch.bool)
    for index, row in enumerate(rows):
        scored[index, : len(row.scored)] = torch.tensor(row.scored)
    scored = scored.to(examinee.device)
    with torch.no_grad():
        logits = examinee.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    # Only what the completions need is taken to fp32.
    picked = logits[:, :-1][scored[:, 1:]].float()
    each = torch.nn.functional.cross_entropy(picked, tokens[:, 1:][scored[:, 1:]], reduction="none")
    return [float(part.double().sum()) for part in each.split(scored.sum(dim=1).tolist())]


def generations(examinee: Examinee, examples: Sequence[Example], max_new_tokens: int, progress: Progress) -> list[str]:
    """What the model writes after each prompt, always the likeliest token next, at most ``max_new_tokens``."""
    texts = [""] * len(examples)
    done = 0
    lengths = [len(example.prompt_tokens) for example in examples]
    for batch in batches(lengths, examinee.batch_size, examinee.batch_size * max(lengths)):
        written = halving(lambda rows: _generated(examinee, rows, max_new_tokens), [examples[index] for index in batch])
        for index, text in zip(batch, written, strict=True):
            texts[index] = text
        done += len(batch)
        progress(done)
    return texts


def _generated(examinee: Examinee, rows: Sequence[Example], max_new_tokens: int) -> list[str]:
    tokens, mask = _padded(examinee, [row.prompt_tokens for row in rows], left=True)
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        pad_token_id=examinee.padding,
        eos_token_id=_ends(examinee) or None,
    )
    with torch.no_grad():
        # A model's own settings, which may say to sample, are put aside whole.
        given = examinee.model.generate(input_ids=tokens, attention_mask=mask, generation_config=settings)
    texts = examinee.tokenizer.batch_decode(given[:, tokens.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _ends(examinee: Examinee) -> list[int]:
    """The tokens that end a text: those of the model's settings, and the tokenizer's."""
    own = examinee.model.generation_config.eos_token_id if examinee.model.generation_config else None
    named = own if isinstance(own, list) else [own]
    return sorted({int(token) for token in [*named, examinee.tokenizer.eos_token_id] if token is not None})


def _padded(examinee: Examinee, rows: Sequence[Sequence[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """``rows`` as one tensor, and the mask of what is no padding."""
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), examinee.padding)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[index, place] = torch.tensor(row, dtype=torch.long)
        mask[index, place] = 1
    return tokens.to(examinee.device), mask.to(examinee.device)

"""A decoder of any family with one prompt: what the engine makes of it, and a reference that masks what was dropped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from helpers.scripted import NEW_TOKENS, Scripted, generated
from stsimdiff.models.base import Family, Prompt

WIDTH, LAYERS = 48, 4
TEXT = dict(
    vocab_size=96,
    hidden_size=WIDTH,
    intermediate_size=80,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.12,
    max_position_embeddings=512,
    bos_token_id=None,
    eos_token_id=95,
    pad_token_id=0,
)


@dataclass
class Case:
    """A family with one prompt, and what a plain run of its decoder needs: ``(1, S, D)`` and positions."""

    family: Family
    prompt: Prompt
    embeds: Tensor
    positions: Tensor


def text_ids() -> tuple[Tensor, Tensor]:
    return torch.randint(1, 80, (5,)), torch.randint(1, 80, (7,))


def masked_reference(case: Case, drops: dict[tuple[str, int], set[int]], tokens: Tensor) -> Tensor:
    """Logits ``(NEW_TOKENS, V)``: the whole sequence again for every token, dropped keys masked from their layer on.

    No cache and no engine; only the generated ``tokens`` are those of the run that it is compared with.
    """
    family, layout, rows = case.family, case.prompt.layout, []
    decoder = family.decoder
    for step in range(NEW_TOKENS):
        embeds = torch.cat((case.embeds, family.model.get_input_embeddings()(tokens[None, :step])), dim=1)
        later = torch.arange(1, step + 1) + case.positions[..., -1:]
        length = embeds.shape[1]
        handles = []
        for number, layer in enumerate(decoder.layers):
            hidden = set()
            for (place, at), dropped in drops.items():
                if at < number or (at == number and place != "between"):
                    hidden |= {int(layout.video[i]) for i in dropped}
            allowed = torch.ones(length, length).tril().bool()
            allowed[:, sorted(hidden)] = False
            # A dropped token may see itself, so that its row is no row of -inf; nobody else reads it.
            allowed |= torch.eye(length, dtype=torch.bool)
            mask = torch.zeros(length, length).masked_fill(~allowed, float("-inf"))[None, None]
            handles.append(
                layer.register_forward_pre_hook(
                    lambda m, a, k, mask=mask: (a, {**k, "attention_mask": mask}), with_kwargs=True
                )
            )
        positions = torch.cat((case.positions, later), dim=-1)
        states = decoder.module(
            inputs_embeds=embeds, position_ids=positions, use_cache=False
        ).last_hidden_state
        for handle in handles:
            handle.remove()
        rows.append(family.model.lm_head(states[0, -1]))
    return torch.stack(rows)


def generate(case: Case, run: Scripted | None):
    family, prompt = case.family, case.prompt
    return generated(family.model, prompt.inputs, family.decoder, prompt.layout, run)

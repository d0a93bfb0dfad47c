"""What SmolLM2-135M does, and by which heads: ``python -m tests.real.measure`` writes data/reference/smollm2_*.csv.

Notebook 11 shows these tables, so that a run needs neither the package with the weights nor their half a gigabyte.
"""

from __future__ import annotations

from functools import partial

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from lib import corpus, models
from lib.circuits import abilities, effects, induction, ioi
from lib.circuits.path_patching import patch_effects
from lib.files import atomic_write
from lib.models.activations import iterate_activations
from lib.models.families import patchable
from lib.workbook import texts
from lib.workbook.reference import REFERENCE
from tests.real import smollm2

DISTANCE, SAMPLES, FEW = 16, 64, 8  # few where each head of the layers before takes a pass over all positions
LOOKS = 0.2  # a head that looks for what followed spends so much of its attention there
SENTENCES, POSITIONS = 128, 4_096
LENGTH = 32  # random tokens that come twice, where a head's attention is measured


def facts(model: TransformerBridge) -> dict[str, float]:
    """Abilities, and how long the residual stream is after each layer: the median, and the longest as its multiple."""
    vocabulary, tokenizer = induction.vocabulary_of(model), model.tokenizer
    drawn = ioi.with_one_token_names(texts.unseen_sentences(SENTENCES), tokenizer)
    found = abilities.induction_abilities(model, vocabulary)
    found |= {"ioi": abilities.ioi(model, tokenizer, drawn), "ioi_sentences": len(drawn)}
    ids = (tokenizer(document, add_special_tokens=False)["input_ids"] for document in texts.documents()[::400])
    blocks = corpus.cut(ids, tokenizer, 256, n_positions=POSITIONS)
    layers = range(models.n_layers(model))
    parts = list(iterate_activations(model, blocks, layers, 8, exact=True))
    for layer in layers:
        norms = torch.cat([part[layer].norm(dim=1) for part in parts]).sort().values
        top = norms[-max(1, len(norms) // 1_000) :]
        found[f"median_{layer}"], found[f"longest_{layer}"] = float(norms.median()), float(norms[-1] / norms.median())
        found[f"of_the_longest_{layer}"] = float(top.square().sum() / norms.square().sum())
    return found


def head_table(model: TransformerBridge) -> pd.DataFrame:
    """Effects of all heads by path patching; columns measure, layer, head, mean_logit_diff, standard_error, n.

    Measures: `B`, on the logit of B when B is replaced; `induction head`, on it through the strongest of the heads that
    attend to what followed, when A is replaced (column `receiver`: its layer and head); `IO`, on the logit of IO in IOI
    when both names are replaced. Adds to each head its mean attention in random tokens that come twice: from a token of
    the second copy to what came after it in the first (`to_what_followed`), and from any token to the one before
    (`to_the_one_before`).
    """
    [p] = induction.prompts_by_distance(model, [DISTANCE], seed=0, n_samples=SAMPLES).values()
    names = ioi_prompts(model)
    attention = _attention(model).set_index(["layer", "head"])
    to_b = effects.head_effects(model, p.clean, p.corrupt_b, p.target, per_sample=True)
    of_b = pd.DataFrame(induction.head_rows(to_b, measure="B"))
    looks = attention["to_what_followed"].to_numpy() > LOOKS
    receiver = tuple(of_b[looks].sort_values("mean_logit_diff")[["layer", "head"]].to_numpy()[0])
    few = p.first(FEW)
    through = effects.head_to_head_effects(model, few.clean, few.corrupt_a, few.target, receiver, per_sample=True)
    to_io = effects.head_effects(model, names.clean, names.corrupt, names.names[:, 0], per_sample=True)
    rows = induction.head_rows(through, measure="induction head", receiver="L{}H{}".format(*receiver))
    rows += induction.head_rows(to_io, measure="IO")
    return pd.concat([of_b, pd.DataFrame(rows)]).join(attention, on=["layer", "head"])


def ioi_prompts(model: TransformerBridge) -> ioi.NamePrompts:
    """IOI sentences of one form; the corrupted ones have two other names."""
    parts = texts.sentence_parts()
    return ioi.name_prompts(ioi.unseen_template(parts), model.tokenizer, 0, SAMPLES, parts["names"])


def name_table(model: TransformerBridge) -> pd.DataFrame:
    """Fig. 13's question: where the last position reads the names. Columns as of `ioi.effects_table`.

    In one layer, keys and values of all heads at one position come from a run with two other names.
    """
    architecture, prompts = patchable(model), ioi_prompts(model)
    senders = partial(effects.patched_inputs, architecture, positions=range(prompts.clean.shape[1]))
    sides = [patch_effects(architecture, prompts.clean, prompts.corrupt, name, senders) for name in prompts.names.T]
    found = torch.stack([side.mean(1) for side in sides], dim=-1).unflatten(0, (models.n_layers(model), -1))
    return ioi.effects_table(found, prompts.words)


def _attention(model: TransformerBridge) -> pd.DataFrame:
    tokens = models.repeated_tokens(16, LENGTH, induction.vocabulary_of(model), seed=0)
    second = torch.arange(LENGTH + 1, 2 * LENGTH + 1)
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"), return_type=None)
    rows = []
    for layer in range(models.n_layers(model)):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"].mean(0)
        followed = pattern[:, second, second - LENGTH + 1].mean(1)
        before = pattern.diagonal(offset=-1, dim1=1, dim2=2).mean(1)
        pairs = zip(followed, before, strict=True)
        rows += [(layer, head, float(a), float(b)) for head, (a, b) in enumerate(pairs)]
    return pd.DataFrame(rows, columns=["layer", "head", "to_what_followed", "to_the_one_before"])


@torch.no_grad()
def main() -> None:
    model = models.load(smollm2.cached(), "cpu")
    found = pd.Series(facts(model), name="value", dtype=float).rename_axis("quantity").reset_index()
    atomic_write(REFERENCE / "smollm2_facts.csv", found.to_csv(index=False, float_format="%.5g"))
    table = head_table(model)
    atomic_write(REFERENCE / "smollm2_heads.csv", table.to_csv(index=False, float_format="%.4g"))
    atomic_write(REFERENCE / "smollm2_names.csv", name_table(model).to_csv(index=False, float_format="%.4g"))


if __name__ == "__main__":
    main()

"""JengaConfig: every choice of the method, in one frozen and torch-free object.

The library (`apply_jenga(model, config)`), the API (the `jenga` object of a job) and the trainer validate with this
same class, so a setting means one thing and is refused in one place. A preset is a named set of defaults; what the
caller gives wins over it:

    JengaConfig.preset("jenga", keep_fraction=0.25)
    JengaConfig.model_validate({"preset": "jenga", "selection": {"score": "random"}})

Vocabulary (the same words everywhere): a *block* is `block_tokens` consecutive tokens of one document; its *score* says
how much the other tokens ask of it; the *selection* is the set of blocks that stay *involved*; the rest are
*eliminated* (y = x: no query, key, value or MLP, nothing saved for backward) or *forward-only* (computed exactly, no
gradient).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jenga_core.errors import ConfigError

Column = Literal["mean", "sum", "relative"]
"""How a key block's scores are pooled over query blocks; see `SelectionConfig.column`."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "jenga": {},
    "jenga-paper": {
        "selection": {
            "scope": "per_layer",
            "by": "threshold",
            "score": "auto",
            "column": "sum",
            "asked_by": "all",
            "target_fraction": 0.0,
            "unselected": "eliminated",
            "loss_on": "all",
            "entry_layer": 0,
        }
    },
    "lora": {"enabled": False},
    "longlora": {"enabled": False, "attention_group_tokens": 2048, "attention_sink_tokens": 0},
}
"""What a preset changes against the field defaults below, which are those of `jenga`. `jenga-paper` is the paper's own
rule: thresholds by Algorithm 1, a new set in every layer, loss on all tokens, predicted scores once there are
predictors for the model. `lora` is dense, `longlora` attends within shifted groups."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def _under(preset: Any, given: Any) -> Any:
    """The preset's value below the given one; parts are laid over each other field by field."""
    if isinstance(given, BaseModel):
        given = given.model_dump(exclude_unset=True)
    return {**preset, **given} if isinstance(preset, Mapping) and isinstance(given, Mapping) else given


class SelectionConfig(_Part):
    """Which blocks stay involved, in which layers (paper, technique 1)."""

    scope: Literal["carried", "per_layer"] = "carried"
    """`carried`: choose once, at the entry layer, and carry the set to the loss. `per_layer`: choose anew in every
    layer from the entry layer on; a block left out comes back in the next layer that wants it (the paper's rule)."""

    by: Literal["keep_fraction", "threshold"] = "keep_fraction"
    """How scores become a selection: the best share of the blocks of each document, or the blocks that score at least
    the layer's threshold (Algorithm 1, see `calibration`)."""

    keep_fraction: float = Field(default=0.4, gt=0, le=1)
    """Share of each document's blocks that stay involved: n = ceil(keep_fraction x N), at least 2."""

    score: Literal["auto", "exact", "predicted", "random", "recent"] = "auto"
    """Where block scores come from. `exact`: the attention scores of the layer that selects. `predicted`: predictors of
    them, which a job trains first unless there are some for this model and these settings. `auto`: predictors where
    there are some, else exact; a job on a GPU trains them. `random` and `recent` are controls: they show what informed
    scores are worth."""

    column: Column = "relative"
    """How a key block's scores are pooled over the query blocks that can see it. `sum` is the paper's; it favours early
    blocks, which more queries can see. `mean` divides that advantage away, and favours late ones, which are near to all
    that see them. `relative` divides each score by what is usual in its document at its distance, and favours
    neither."""

    asked_by: Literal["targets", "all"] = "targets"
    """The query blocks whose asking counts. `targets`: those that are learnt from, so that context is what the loss
    needs; blocks with a label where `target_fraction` is 0. `all`: every block (the paper's)."""

    target_fraction: float = Field(default=0.5, ge=0, le=1)
    """Of the blocks that are kept, the share that is kept to be learnt from, whatever it scores: all blocks with a
    label if they are few, else a run of consecutive ones, another in every epoch. The others are context, best score
    first. 0: scores alone decide."""

    unselected: Literal["eliminated", "forward_only"] = "eliminated"
    """What becomes of unselected tokens from the entry layer on. `forward_only`: computed exactly, without gradient."""

    below_entry: Literal["forward_only", "involved"] = "forward_only"
    """What becomes of unselected tokens below the entry layer. `forward_only` (deferred selection): the lower layers
    run once without gradient, the set is chosen, and only its tokens run again with gradient, against the keys and
    values of all. `involved`: dense, with gradient; the only way, and so the default, when every layer chooses anew."""

    mlp_keep_fraction: float = Field(default=1.0, gt=0, le=1)
    """Of the blocks that a layer computes from the entry layer on, the share whose MLP is computed too, those with the
    largest intermediate activations (the paper's MLP extension). 1: all of them."""

    loss_on: Literal["involved", "all"] = "involved"
    """Tokens whose next-token loss is taken: those still involved at the last layer, or all with a label."""

    entry_layer: int | None = Field(default=None, ge=0)
    """The layer that chooses (`per_layer`: the first that does), counted from 0; the layers below compute every token.
    None means three fifths of the layers, behind those that look things up, and from there the first whose attention
    reaches back to the first token: a layer with a sliding window cannot tell what is asked of far blocks."""

    block_tokens: int = Field(default=64, ge=1, le=4096)
    """Tokens per block. Blocks start at each document's first token."""

    @property
    def has_exact_pass(self) -> bool:
        """Some layers run for all tokens without gradient before their involved rows run with it."""
        return "forward_only" in (self.below_entry, self.unselected)

    @model_validator(mode="before")
    @classmethod
    def _below_entry_of_the_scope(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("scope") == "per_layer":
            return {"below_entry": "involved", **given}
        return given

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.mlp_keep_fraction < 1 and self.unselected == "forward_only":
            raise ValueError(
                "mlp_keep_fraction below 1 needs unselected='eliminated': forward-only tokens are computed exactly"
            )
        if self.scope == "per_layer" and self.below_entry == "forward_only":
            raise ValueError(
                "below_entry='forward_only' needs one set for all layers: "
                "use scope='carried', or below_entry='involved'"
            )
        return self


class LoraConfig(_Part):
    """The adapter (Hu et al. 2021), as peft names its fields."""

    r: int = Field(default=8, ge=1, le=1024)
    """Rank."""

    alpha: float = Field(default=16, gt=0)
    """The update is scaled by alpha / r."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""

    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of the linear layers that get an adapter. None means those of attention: q_proj, k_proj, v_proj and o_proj,
    or what the architecture has in their place."""


def default_entry_layer(layers: int, layer_types: Sequence[str] | None = None) -> int:
    """Three fifths of the layers, and from there the first whose attention does not slide; that, if all do.

    Args:
        layer_types: as transformers names them, "full_attention" or "sliding_attention"; None: no layer slides.
    """
    entry = layers * 3 // 5
    if layer_types is None:
        return entry
    return next((layer for layer in range(entry, layers) if layer_types[layer] == "full_attention"), entry)


def kept_blocks(blocks: int, keep_fraction: float) -> int:
    """n = ceil(keep_fraction x N) of a document of N blocks, at least 2 if it has so many."""
    return min(max(math.ceil(blocks * keep_fraction - 1e-9), 2), blocks)  # 0.1 x 30 must give 3, not 4


MAX_ROPE_FACTOR = 64


class RopeConfig(_Part):
    """Context extension: how rotary positions are stretched past the model's own length."""

    type: Literal["linear", "dynamic", "yarn"] = "linear"
    """`linear` position interpolation, `dynamic` NTK, or `yarn`."""

    factor: float = Field(default=2.0, gt=1, le=MAX_ROPE_FACTOR)
    """New length over the model's own."""


class CalibrationConfig(_Part):
    """The search for layer-specific thresholds (paper, Algorithm 1), for `selection.by` = `threshold`.

    On a CPU it looks at 512 tokens of each sample at most, on a GPU at the whole context.
    """

    samples: int = Field(default=4, ge=1, le=1024)
    """Held-out sequences; of the training file where there is no validation file."""

    sweeps: int = Field(default=4, ge=0, le=100)
    """Passes over the layers that select. Each costs two forwards per layer and sample; 0 keeps the initial means."""

    epsilon: float = Field(default=0.25, gt=0, le=1)
    """Half the finite difference, in units of a layer's initial threshold."""

    eta: float = Field(default=10.0, gt=0)
    """Step size, in initial thresholds per unit of accuracy slope."""


class PredictorConfig(_Part):
    """Predictors of block scores (paper, technique 2), trained on the frozen model before the adapter is."""

    hidden: int = Field(default=256, ge=8, le=8192)
    """Neurons after the first and after the second of a network's three matrices; training takes out dead ones."""

    head_size: int = Field(default=48, ge=2, le=256, multiple_of=2)
    """Coordinates of a predicted query or key; those of the layer that matter most."""

    steps: int = Field(default=300, ge=1, le=100_000)
    """Optimizer steps."""

    samples_per_step: int = Field(default=4, ge=1, le=64)
    """Sequences in a step."""

    tokens: int = Field(default=524_288, ge=1024)
    """Tokens of the training file that predictors learn from, an eighth of them held out to measure recall; fewer where
    the file has fewer. Their residual streams are kept in the host's memory meanwhile."""

    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    """Peak, of Adam. Small: training begins where the layer itself is."""

    min_recall: float = Field(default=0.9, ge=0, le=1)
    """With `selection.score` = `auto`, a job uses exact scores when the predictor of some layer recalls less."""


class LossConfig(_Part):
    """Segmented cross entropy (paper, technique 3: segment-based peak cutting)."""

    segment_tokens: int = Field(default=1024, ge=16)
    """Rows of logits that exist at once. Peak memory of the loss is proportional to it, gradients do not depend on
    it."""


class JengaConfig(_Part):
    """All settings of one fine-tuning run.

    Validation errors are pydantic's; `parse()` turns the first one into a ConfigError that names the field.
    """

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True, validate_by_alias=True)

    preset_name: str = Field(default="jenga", alias="preset")
    """Named defaults to start from: `jenga` (contextual token sparsity), `jenga-paper`, `lora` (dense) or `longlora`
    (dense but for attention, which is within shifted groups)."""

    enabled: bool = True
    """False switches the method off: every token is involved in every layer."""

    context_length_tokens: int = Field(default=2048, ge=16)
    """Longest sequence trained on. Longer texts are split into windows; longer chats are cut."""

    max_steps: int | None = Field(default=None, ge=1, le=1_000_000)
    """Optimizer steps. Replaces the number of epochs; the data is cycled as often as needed."""

    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Absolute peak learning rate. None means 2e-4 x the job's learning_rate_multiplier."""

    gradient_accumulation_steps: int = Field(default=1, ge=1, le=1024)
    """Micro-batches per optimizer step."""

    checkpoint_steps: int = Field(default=100, ge=1)
    """Optimizer steps between checkpoints; a job whose trainer is killed goes on from the last one."""

    eval_windows: int = Field(default=64, ge=1)
    """Held-out windows that are evaluated before and after, spread evenly over the validation file."""

    selection: SelectionConfig = SelectionConfig()
    """Which tokens stay involved."""

    calibration: CalibrationConfig = CalibrationConfig()
    """How thresholds are found."""

    predictor: PredictorConfig = PredictorConfig()
    """How predictors of block scores are trained, if they are."""

    loss: LossConfig = LossConfig()
    """How the loss is computed."""

    recompute: Literal["none", "mlp", "full"] = "none"
    """What is computed again instead of kept. `none`: norms; in layers that the exact pass has computed, all but input,
    attention output, keys and values. `mlp`: gate and up, too. `full`: all but a layer's input (below the
    entry layer, that of all tokens, or keys and values and the rows', whichever is less); least memory, for the longest
    contexts."""

    offload: bool = False
    """What recompute='full' keeps of a layer leaves the GPU while the next one computes, waits for backward in the
    host's memory, and comes back ahead of its turn. On a CPU nothing moves."""

    attention_group_tokens: int | None = Field(default=None, ge=2)
    """Layers that compute with gradient attend within groups of so many of their tokens only, half of the heads in
    groups that are shifted by half of that (LongLoRA's shifted sparse attention). Of dense training that is the preset
    `longlora`; of the involved tokens alone, the paper's two-dimensional sparsity. None: to all."""

    attention_sink_tokens: int = Field(default=64, ge=0)
    """In groups, each token also sees the first so many of its document, where attention rests when it finds nothing.
    0: it does not, as LongLoRA was published."""

    fused: bool = True
    """Layers whose structure is known run as fewer and leaner operations. False leaves them to transformers and peft,
    and then `enabled=False` computes bit for bit what the unpatched model does."""

    cuda_graph: bool = True
    """On a GPU, steps of equally long full windows are captured once as a CUDA graph and replayed: small models and
    short contexts, which wait for Python otherwise, train several times faster. The numbers stay the same."""

    lora: LoraConfig = LoraConfig()
    """The adapter."""

    rope: RopeConfig | None = None
    """Context extension; None keeps the model's own positions and its own limit."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        """Put the preset's values under the given ones, and move the short form `keep_fraction` to its place."""
        if not isinstance(given, Mapping):
            return given
        values = dict(given)
        name = values.setdefault("preset", values.pop("preset_name", "jenga"))
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(map(repr, PRESETS))}; got {name!r}")
        for key, value in PRESETS[name].items():
            values[key] = _under(value, values[key]) if key in values else value
        if "keep_fraction" in values:
            short = values.pop("keep_fraction")
            selection = values.get("selection") or {}
            if isinstance(selection, SelectionConfig):
                selection = selection.model_dump(exclude_unset=True)
            if isinstance(selection, Mapping):
                if "keep_fraction" in selection and selection["keep_fraction"] != short:
                    raise ValueError(
                        f"keep_fraction is given twice: {short!r} and selection.keep_fraction="
                        f"{selection['keep_fraction']!r}; give one"
                    )
                values["selection"] = {**selection, "keep_fraction": short}
        return values

    @model_validator(mode="after")
    def _recompute_repeats(self) -> Self:
        if self.offload and self.recompute != "full":
            raise ValueError(
                f"offload takes the few tensors that layers keep with recompute='full', got {self.recompute!r}; set "
                "both, or leave offload out"
            )
        if self.recompute == "full" and self.attention_group_tokens is not None:
            raise ValueError("recompute='full' attends to all tokens again; use recompute='none' or 'mlp' with groups")
        if self.recompute == "full" and self.lora.dropout > 0:
            raise ValueError(
                f"recompute='full' computes layers twice, which lora.dropout={self.lora.dropout:g} would make differ; "
                "set it to 0, or use recompute='none' or 'mlp'"
            )
        return self

    @classmethod
    def parse(cls, given: Mapping[str, Any], *, param: str = "jenga") -> JengaConfig:
        """Validate a plain mapping; raise ConfigError naming the first offending field under `param`."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join([param, *(str(part) for part in first["loc"])])
            message = first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                message = f"no such setting; {_advice([str(part) for part in first['loc']], param)}"
            got = "" if first["type"] in ("missing", "value_error") else f" (got {first['input']!r})"
            raise ConfigError(f"{where}: {message}{got}", param=where) from error

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> JengaConfig:
        """`JengaConfig.preset("jenga", keep_fraction=0.4)`: a preset with some fields replaced."""
        return cls.parse({"preset": name, **overrides}, param="JengaConfig")


def _advice(given: Sequence[str], param: str) -> str:
    """The setting that was meant, or else those there are beside it."""
    *part, name = given
    names = list(_names(JengaConfig))
    by_last = {each.rpartition(".")[2]: each for each in reversed(names)}  # of two alike, the one nearer to the top
    meant = next((by_last[each] for each in get_close_matches(name, by_last, n=1, cutoff=0.8)), None)
    if meant is not None:
        return f"did you mean {param}.{meant}?"
    beside = [each.rpartition(".")[2] for each in names if each.rpartition(".")[0] == ".".join(part)]
    return f"there are {', '.join(beside)}"


def _names(part: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Of all settings, with those that they are in."""
    for name, field in part.model_fields.items():
        yield prefix + ("preset" if name == "preset_name" else name)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _names(kind, f"{prefix}{name}.")

"""Our sampler and scorer as a model of EleutherAI's lm-evaluation-harness, `--model rcsd_jax`.

python -m rcsd_jax.evaluate.harness run --model rcsd_jax --model_args pretrained=DIR --tasks TASKS [--batch_size N ...]
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from rcsd_jax.checkpoints.settings import ModelSettings
from rcsd_jax.host.console import to_stderr
from rcsd_jax.host.errors import UserError
from rcsd_jax.models import sharding
from rcsd_jax.roles.opened_model import open_served
from rcsd_jax.sampling.decoder_sampler import DecoderSampler
from rcsd_jax.sampling.decoding import SamplingConfig

# What a task may ask of its texts. Others are refused, because leaving one out would change the score.
_KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}

Scored = tuple[float, bool]
"""A text's log-probability, and whether greedy sampling would write it."""


@register_model("rcsd_jax")
class HarnessModel(TemplateLM):
    """A model or a LoRA adapter on this machine's devices. Numbers are those of the harness's `hf` model on the same weights.

    Args:
      pretrained: a Hugging Face directory or hub id, or the directory of an adapter.
      dtype: of activations and stored parameters.
      batch_size: rows at a time; rounded up to what the mesh divides. "auto" is 32.
      data, fsdp, tensor: the mesh, as in a config.
      max_length: tokens of a context and its continuation; None for the model's own limit.
      max_gen_toks: tokens of a text whose task does not say how many.
      pad_to: lengths are rounded up to multiples of this, so that few programs are compiled.
      enable_thinking: the chat template's switch; None leaves it to the template.
      think_end_token: what ends a thinking block; only the text after it is graded.
      seed: of texts that are sampled.
      device, max_batch_size: the harness gives them to every model; JAX chooses the device.

    Raises:
      UserError: the model cannot be read, or the mesh does not fit the devices.
    """

    def __init__(
        self,
        pretrained: str,
        dtype: str = "bfloat16",
        batch_size: int | str = 32,
        data: int = 1,
        fsdp: int = -1,
        tensor: int = 1,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        pad_to: int = 128,
        enable_thinking: bool | None = None,
        think_end_token: str | None = None,
        seed: int = 0,
        device: str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        settings = ModelSettings(
            path=pretrained,
            dtype=dtype,
            param_dtype=dtype,
            remat="none",
            kernels="auto",
            quantization="none",
            thought_begin="",
            thought_end="",
        )
        self._mesh = sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor)
        served = open_served(pretrained, settings, self._mesh)
        self._model, self.tokenizer = served.model, served.model.tokenizer
        self._name = pretrained
        self._thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self._think_end, self._seed, self._max_gen_toks = think_end_token, seed, max_gen_toks
        self.max_length = max_length or self._model.decoder.config.max_position
        shards = data * self._mesh.shape["fsdp"]
        rows = 32 if batch_size == "auto" else int(batch_size)
        with jax.set_mesh(self._mesh):
            self._sampler = DecoderSampler(
                self._model.decoder,
                served.load(),
                mesh=self._mesh,
                batch_size=-(-rows // shards) * shards,
                pad_to=pad_to,
                pad_id=self._model.pad_id,
            )

    # --- texts and tokens ---

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._model.eos_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without a context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches."""
        return self._name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; special tokens are added as the tokenizer does it, but no second one at the beginning."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode([self.prefix_token_id]))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the model's chat template writes it."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self._thinking,
        )

    # --- requests ---

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[Scored]:
        """For (what was asked, context, continuation); a context that is too long loses its beginning."""
        prompts, continuations = [], []
        for _asked, context, continuation in requests:
            whole = np.asarray((context + continuation)[-(self.max_length + 1) :], np.int32)
            count = len(continuation)
            if not 0 < count < len(whole):
                raise ValueError(f"a continuation has {count} tokens, and all of {self.max_length} fit with a context")
            prompts.append(whole[:-count])
            continuations.append(whole[-count:])
        with jax.set_mesh(self._mesh):
            log_probs = self._sampler.log_probs(prompts, continuations)
            likeliest = self._sampler.likeliest(prompts, continuations)
        scored = [(float(p.sum()), bool(g.all())) for p, g in zip(log_probs, likeliest, strict=True)]
        for (asked, *_rest), answer in zip(requests, scored, strict=True):
            if asked is not None:
                self.cache_hook.add_partial("loglikelihood", asked, answer)
        return scored

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probabilities of whole texts, in windows of `max_length` tokens."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for request in requests:
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [(None, *make_disjoint_window(window)) for window in rolling]
            windows += own
            counts.append(len(own))
        scored = iter(self._loglikelihood_tokens(windows))
        totals = [sum(next(scored)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts up to their first stop string. The sampler stops at end tokens; stop strings are cut off afterwards."""
        asked_alike: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            asked_alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        texts = [""] * len(requests)
        for indexes in asked_alike.values():
            found = self._texts([requests[i].args[0] for i in indexes], requests[indexes[0]].args[1])
            for i, text in zip(indexes, found, strict=True):
                texts[i] = text
                self.cache_hook.add_partial("generate_until", requests[i].args, text)
        return texts

    def _texts(self, contexts: Sequence[str], asked: dict[str, Any]) -> list[str]:
        settings: dict[str, Any] = dict(normalize_gen_kwargs(asked, self._max_gen_toks))
        if unknown := sorted(set(settings) - _KNOWN):
            remedy = "leave it out of the task, or evaluate with --model hf"
            raise UserError(
                "the sampler has no such setting", field=unknown[0], value=settings[unknown[0]], remedy=remedy
            )
        until = handle_stop_sequences(settings.get("until"), eos=self.tokenizer.decode([self.eot_token_id]))
        limit = settings["max_gen_toks"]
        sampling = SamplingConfig(max_new_tokens=limit, temperature=0.0, eos_ids=self._model.eos_ids)
        if settings.get("do_sample"):
            top_p = settings.get("top_p", 1.0)
            drawn: dict[str, Any] = dict(top_k=settings.get("top_k") or None, top_p=top_p if top_p < 1.0 else None)
            sampling = dataclasses.replace(sampling, temperature=float(settings.get("temperature", 1.0)), **drawn)
        room = self.max_length - limit
        if room < 1:
            remedy = "lower it, or raise max_length"
            raise UserError("leaves no room for a context", field="max_gen_toks", value=limit, remedy=remedy)
        encoded = [np.asarray(self.tok_encode(context)[-room:], np.int32) for context in contexts]
        seeds = range(self._seed, self._seed + len(encoded))
        texts = [""] * len(encoded)
        with jax.set_mesh(self._mesh):
            for chosen, completions in self._sampler.generate(encoded, seeds, sampling):
                for i, one in zip(chosen, completions, strict=True):
                    texts[i] = postprocess_generated_text(self._model.decode(one.tokens), until, self._think_end)
        return texts


def main() -> None:
    """The harness's own command line, which knows this model too."""
    try:
        cli_evaluate()
    except UserError as error:
        to_stderr(f"error: {error}")
        sys.exit(2)


if __name__ == "__main__":
    main()

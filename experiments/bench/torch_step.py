"""The same step in PyTorch: assembled by hand, and by TRL's `SDFTTrainer`. Forward KL, fixed teacher, AdamW, clip 1."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import datasets
import numpy as np
import tokenizers
import torch
import transformers
from trl.experimental.gkd.gkd_trainer import GKDTrainer
from trl.experimental.sdft import SDFTConfig, SDFTTrainer

from experiments.bench.setting import LEARNING_RATE, Sizes, clock, decoder_config, prompts
from experiments.bench.workload import Rows
from rcsd_jax.host.padding import pad_left


def write_model(directory: pathlib.Path, seed: int = 0) -> None:
    """Writes the setting's model with random weights, and a tokenizer of one token a word ("8" is id 8)."""
    c = decoder_config()
    torch.manual_seed(seed)
    config = transformers.Qwen3Config(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        tie_word_embeddings=c.tie_embeddings,
        max_position_embeddings=c.max_position,
        rms_norm_eps=c.rms_norm_eps,
        rope_parameters=dict(rope_type="default", rope_theta=c.rope_theta),
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(directory)
    words = {"<pad>": 0, "<eos>": 1} | {str(i): i for i in range(2, c.vocab_size)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    ).save_pretrained(directory)


class _Hand:
    """Student, fixed teacher and optimizer."""

    def __init__(self, directory: pathlib.Path, *, attention: str = "sdpa"):
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.student = load(directory, dtype=torch.float32, attn_implementation=attention).train()
        self.teacher = load(directory, dtype=torch.float32, attn_implementation=attention).eval()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=LEARNING_RATE, weight_decay=0.0)

    def generate(self, prompt: torch.Tensor, mask: torch.Tensor, count: int) -> torch.Tensor:
        """`count` new tokens of every row, [B, count]."""
        generation = transformers.GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=count,
            max_new_tokens=count,
            pad_token_id=0,
            eos_token_id=None,
        )
        with torch.no_grad():
            out = self.student.generate(input_ids=prompt, attention_mask=mask, generation_config=generation)
        return out[:, prompt.shape[1] :]

    def update(self, loss: torch.Tensor) -> float:
        """One update; returns the loss."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


class HandStep(_Hand):
    """transformers.generate, two forwards, TRL's generalized JSD on the completion's logits, AdamW with clipping."""

    def __init__(self, directory: pathlib.Path, sizes: Sizes, *, attention: str = "sdpa"):
        super().__init__(directory, attention=attention)
        self.sizes = sizes
        self.prompt, self.teacher_prompt = (
            torch.tensor(x, dtype=torch.long) for x in prompts(sizes, self.student.config.vocab_size)
        )

    def sample(self) -> torch.Tensor:
        """Completions [B, N]."""
        return self.generate(self.prompt, torch.ones_like(self.prompt), self.sizes.completion)

    def loss(self, completion: torch.Tensor) -> torch.Tensor:
        """Mean divergence per completion token."""
        student = self._logits(self.student, self.prompt, completion)
        with torch.no_grad():
            teacher = self._logits(self.teacher, self.teacher_prompt, completion)
        return GKDTrainer.generalized_jsd_loss(student, teacher, beta=0.0, reduction="sum") / completion.numel()

    def _logits(self, model, prompt: torch.Tensor, completion: torch.Tensor) -> torch.Tensor:
        tokens = torch.cat([prompt, completion], dim=1)
        keep = completion.shape[1] + 1  # computes no other logits
        return model(tokens, use_cache=False, logits_to_keep=keep).logits[:, :-1]

    def train(self, completion: torch.Tensor) -> float:
        """One update on given completions; returns the loss."""
        return self.update(self.loss(completion))


class PaddedHandStep(_Hand):
    """The same for rows of different lengths: a batch is padded to its longest prompts and its longest completion."""

    def sample(self, rows: Rows) -> torch.Tensor:
        """Completions [B, N]. All rows go on until the longest ends."""
        return self.generate(*_padded(rows.student), int(rows.lengths.completion.max()))

    def loss(self, rows: Rows, completion: torch.Tensor) -> torch.Tensor:
        """Mean divergence per completion token, of the tokens within each row's length."""
        mask = torch.arange(completion.shape[1]) < torch.as_tensor(rows.lengths.completion)[:, None]
        student = self._logits(self.student, rows.student, completion, mask)
        with torch.no_grad():
            teacher = self._logits(self.teacher, rows.teacher, completion, mask)
        labels = completion.masked_fill(~mask, -100)
        loss = GKDTrainer.generalized_jsd_loss(student, teacher, labels=labels, beta=0.0, reduction="sum")
        return loss / mask.sum()

    def _logits(self, model, prompts: list[np.ndarray], completion: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        prompt, prompt_mask = _padded(prompts)
        tokens = torch.cat([prompt, completion], dim=1)
        mask = torch.cat([prompt_mask, mask.long()], dim=1)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        keep = completion.shape[1] + 1
        out = model(tokens, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=keep)
        return out.logits[:, :-1]

    def train(self, rows: Rows, completion: torch.Tensor) -> float:
        """One update on given completions; returns the loss."""
        return self.update(self.loss(rows, completion))


def _padded(prompts: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded tokens and mask, [B, longest] int64."""
    tokens, mask = pad_left(prompts, max(map(len, prompts)), 0)
    return torch.as_tensor(tokens, dtype=torch.long), torch.as_tensor(mask, dtype=torch.long)


class _TimedTrainer(SDFTTrainer):
    def _generate(self, *args, **kwargs):
        start = clock()
        result = super()._generate(*args, **kwargs)
        self.sampling_seconds = clock() - start
        return result


class _Clock(transformers.TrainerCallback):
    def __init__(self, after_step: Callable[[np.ndarray], None]):
        self.after_step = after_step

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = clock()

    def on_step_end(self, args, state, control, **kwargs):
        self.after_step(clock() - self.start)


def run_trainer(
    directory: pathlib.Path,
    output: pathlib.Path,
    sizes: Sizes,
    steps: int,
    after_step: Callable[[np.ndarray, np.ndarray], None],
) -> None:
    """Runs `SDFTTrainer` for some steps and calls `after_step(its seconds, those of sampling)` after each (see `setting.clock`).

    Set as the other peers: whole-vocabulary forward KL, the initial model as teacher, one completion of each prompt, one
    update a batch, float32, no gradient checkpointing, no end token.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    student, teacher = prompts(sizes, decoder_config().vocab_size)

    def text(tokens: np.ndarray) -> str:
        return " ".join(map(str, tokens))

    rows = [
        dict(prompt=text(s), privileged_context=text(t[sizes.prompt :])) for s, t in zip(student, teacher, strict=True)
    ]
    config = SDFTConfig(
        output_dir=str(output),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=sizes.batch,
        gradient_accumulation_steps=1,
        num_generations=1,
        max_steps=steps,
        max_prompt_length=sizes.teacher_prompt,
        max_completion_length=sizes.completion,
        generation_kwargs=dict(min_new_tokens=sizes.completion),
        distillation_mode="full_logits",
        distillation_alpha=0.0,
        teacher_model_kind="base",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        optim="adamw_torch",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        model_init_kwargs=dict(dtype=torch.float32),
    )
    trainer = _TimedTrainer(
        str(directory), args=config, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
    )

    def measured(seconds: np.ndarray) -> None:
        lengths = trainer._buffered_inputs[0]["completion_mask"].sum(dim=1)
        if not (lengths == sizes.completion).all():
            raise ValueError(f"rows ended early: {lengths.tolist()}")
        after_step(seconds, trainer.sampling_seconds)

    trainer.add_callback(_Clock(measured))
    trainer.train()

"""The keys of a stage's config, with their defaults (the paper's settings).

A job is either one stage (a config made by `stage`) or several run in order (`job`), each in its own folder of the
workdir. Configs are data: this module knows the keys, and `settings.unpack` makes checked values of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from rcsd_jax.evaluate.benchmarks import BENCHMARKS
from rcsd_jax.roles import contexts


def stage() -> ConfigDict:
    """One stage: the paper's Stage II on the user's JSONL. It has every key."""
    return ConfigDict(
        dict(
            seed=0,  # decides the order of data, the first adapters and sampling
            task="solve",  # what the model writes: a solution, or a rubric ("write_rubric")
            method="self_distillation",  # the loss: `rcsd_jax.methods.METHODS`
            prompts=contexts.ENGLISH,  # the texts of prompts around a row's fields
            model=dict(
                path="",  # a Hugging Face directory or hub name: Qwen3, Gemma 3, Llama 3 and other families, see docs/index.md
                dtype="bfloat16",  # of activations
                param_dtype="bfloat16",  # of stored parameters; trained parameters are kept in float32
                remat="full",  # what the backward pass recomputes: `models.config.REMAT`
                kernels="auto",  # of attention: Pallas on TPU, otherwise XLA
                quantization="none",  # store weights that do not change (LoRA's base, a fixed teacher) as "int8" or "int4"
                thought_begin="<think>",  # opens a thinking block; one added token of the tokenizer, or more
                thought_end="</think>",  # ends it
            ),
            lora=dict(  # rank 0: full fine-tuning; adapters are scaled by alpha / rank
                rank=64, alpha=128.0, targets=("q", "k", "v", "o", "gate", "up", "down")
            ),
            data=dict(
                source="jsonl",  # used if the path does not name its source
                # FILE.jsonl, FILE.parquet, hub:OWNER/NAME[:CONFIGURATION][#SPLIT], tfds:NAME[#SPLIT], or a world's split; several
                # with their shares: FILE:0.7,FILE:0.3
                path="",
                # column names; empty: the usual aliases
                fields=dict(question="", reference="", rubric="", answer="", solution="", id=""),
                incomplete="skip",  # leave out a row that lacks a field or whose rubric breaks the bounds of `rubric`, or "fail"
                split="train",  # of a data set, if its path names no split
                tfds_dir="",  # where TFDS keeps prepared data; empty: its default
                count=0,  # the number of the world's problems
                flawed=config_dict.placeholder(float),  # share of the world's references with a wrong step
                max_student_prompt=2048,  # tokens
                max_teacher_prompt=4096,  # tokens
                too_long="skip",  # leave out a row with a longer prompt, or "fail"; prompts are never cut
                pad_to=128,  # prompt lengths are rounded up to multiples of this, so that few shapes are compiled
            ),
            # The fields that a role sees, in this order, the turn in which those besides the question stand ("user": the last user
            # turn, or "system"), and the chat template's thinking switch.
            student=dict(fields=("question",), shown_in="user", thinking=True),
            teacher=dict(
                fields=("question", "rubric"),  # as for the student
                shown_in="user",  # the turn in which its fields besides the question stand: the last "user" turn, or "system"
                thinking=True,
                # The initial weights; "live": the current ones; "ema": their moving average; "trust_region": the logits of the initial
                # and of the current ones, mixed.
                weights="fixed",
                path="",  # another model, or a LoRA adapter, with the student's tokens; empty: the student's own model
                # several instead: name -> such a path. A row names its own in the column `teacher`, or its source does in `of_sources`
                paths=ConfigDict(),
                of_sources=ConfigDict(),  # a mixture's source -> the name of its teacher
                quantization="none",  # store the weights of `path` or `paths` as "int8" or "int4"
                ema_decay=0.999,  # of the moving average, per step
                current_share=0.05,  # of the current weights' logits in a trust region
                reason_tokens=0,  # > 0: the teacher first writes an analysis of at most this many tokens
                reason_by="teacher",  # whose weights write it; "student" in the authors' release
                transition="turn",  # what follows the analysis: a user turn, or "raw" text without the chat template
                # Of "success" and "feedback" it sees "all" or is not asked, "any" that there are, or the "first" that there is.
                attempts_shown="all",
                reason_thinking=True,  # the thinking switch of that analysis
                guidance=0.0,  # > 0: pushes the teacher's logits further in the direction in which its fields move them, by this factor
                # "context": all fields at once; "criteria": each criterion separately, scaled by its weight; "purified": the student's logits,
                # moved by what the question changes in the teacher's; "other_row": the row's material against another row's; "failure":
                # the group's success against a completion that failed
                guidance_by="context",
                better_of_two=False,  # token by token the teacher, or the current student after the teacher's prompt, see docs/methods.md
            ),
            # Instead of teacher.path: a model at an OpenAI-compatible endpoint that returns `prompt_logprobs` of token ids, as vLLM does.
            teacher_endpoint=dict(
                model="",  # its name there; empty: none
                base_url="http://localhost:8000/v1",
                key_variable="",  # the environment variable that holds the key; empty: no key is needed
                concurrency=16,  # requests at a time
                timeout_s=600.0,  # of one request
                retries=8,  # of a request that failed
                requests_per_minute=config_dict.placeholder(float),  # None: no limit
            ),
            rubric=dict(
                source="data",  # the rows' own rubrics, a variant of them, or "written" by a model
                style="objects",  # how models see rubrics: with titles and weights, or "strings": only descriptions with their classes
                min_criteria=3,  # a rubric with fewer criteria is rejected
                max_criteria=25,  # a rubric with more criteria is rejected
                noisy_fraction=0.5,  # the share of criteria that "noisy" takes from other questions
                reduced_fraction=0.5,  # the share of criteria that "reduced" keeps
                # > 0: the share of criteria that a rollout leaves out at random, from what the teacher sees and from rewards; at least
                # min_criteria stay
                dropout=0.0,
                writer="",  # the model that writes rubrics, usually from Stage I: the directory of a model or an adapter
                writer_fields=("question",),  # the fields that the writer sees
                writer_thinking=True,  # its thinking switch
                constrained=True,  # the writer can only write rubrics of the form of `style`, within the bounds above
                resample=2,  # how often a rejected rubric is resampled
                on_reject="generic",  # after that: use the generic rubric, or drop the question
                salvage=True,  # accept what can be read of a text that is no whole JSON array; False: such a text is rejected
                max_prompt=4096,  # tokens of the writer's prompt; a row with a longer one is left out
                max_new_tokens=4096,  # of a written rubric and the thought before it
                temperature=1.0,
                top_k=20,  # 0: all tokens
                top_p=0.95,
                batch_size=32,  # rubrics written at a time
            ),
            sampling=dict(
                max_new_tokens=4096,  # the longest completion
                temperature=1.2,  # divides logits while sampling and in the loss; 0: greedy, and the loss uses 1
                top_k=20,  # 0: all tokens
                top_p=0.95,  # 1: all tokens
                source="student",  # who writes the completions: a role, or "reference", the data
                group=1,  # completions of each question; a batch has batch_size / group questions
                slots=0,  # > 0: rows sampled at a time; the next prompt takes a finished row's place; 0: as many as a batch has
                draft_tokens=0,  # > 0: next tokens that a step also guesses and checks, also in evaluation; completions stay the same
                int8_cache=False,  # store keys and values as int8; never in evaluation
                merged_adapters=False,  # decode with LoRA merged into the weights, which is faster; never in evaluation
                presence_penalty=0.0,  # subtracted from the logits of tokens that the completion already has; never in evaluation
                int8_weights=False,  # sample from an int8 copy of the student, made anew in every step; never in evaluation
            ),
            # Completions are graded if the method needs rewards, or if the teacher sees the student's own success or feedback.
            # A success has at least this score. Grader "majority": the answer that most completions of a question give counts as right.
            # shown: of the group's other successes, the teacher sees the "first" or the "shortest".
            reward=dict(grader="", score="accuracy", success=1.0, shown="first"),
            policy=dict(  # of GRPO
                clip_low=0.2,  # how far a token's ratio to the sampler may fall below 1 and still count
                clip_high=0.2,  # and rise above it
                kl=0.0,  # weight of the KL from the reference model, which teacher.weights and teacher.fields define
                scale_advantages=True,  # by the group's deviation; False: Dr. GRPO
                weight=1.0,  # of this loss when added to self-distillation
            ),
            # Grader "judge": another model decides each criterion of the row's rubric.
            judge=dict(
                model="",  # its name at an OpenAI-compatible endpoint
                base_url="https://api.openai.com/v1",
                key_variable="OPENAI_API_KEY",  # the environment variable that holds the key; empty: no key is needed
                checkpoint="",  # instead of an endpoint: a model or adapter that runs on this machine
                second_model="",  # another judge of the same evaluations: they then say how far the two agree (Cohen's kappa)
                second_base_url=config_dict.placeholder(str),  # None: as `base_url`
                second_key_variable=config_dict.placeholder(str),  # None: as `key_variable`
                second_checkpoint="",  # instead of an endpoint, for the second judge
                per_call="criterion",  # one call for each criterion, or for the whole "rubric"
                reasks=2,  # how often an unreadable answer is asked for again; after that it is left out of all scores
                max_characters=200_000,  # longer prompts are not asked, and reported
                temperature=0.0,
                seed=config_dict.placeholder(int),  # None: no seed is sent
                max_tokens=4096,  # of an answer
                extra=ConfigDict(),  # further fields of a request
                concurrency=16,  # requests at a time
                timeout_s=120.0,  # of one request
                retries=8,  # of a request that failed
                requests_per_minute=config_dict.placeholder(float),  # None: no limit
                tokens_per_minute=config_dict.placeholder(float),  # None: no limit
                input_price=config_dict.placeholder(float),  # US dollars per million tokens
                output_price=config_dict.placeholder(float),  # US dollars per million tokens
                batch_size=32,  # prompts at a time, for a checkpoint
            ),
            loss=dict(
                divergence="vocabulary",  # the sum over the vocabulary, or "sampled_token": a policy gradient of the reverse KL
                beta=0.0,  # 0: forward KL, 1: reverse KL, between: generalized JSD
                # A placeholder is None until it is set. Each key has its own: a shared one would set them all.
                top_k=config_dict.placeholder(int),  # entries kept at each position; None: all
                top_k_support="teacher",  # the role whose likeliest entries are kept
                tail="renormalize",  # drop the mass of the other entries, or "bucket": it becomes one more entry
                entry_clip=config_dict.placeholder(float),  # upper clamp of each entry's term, before the sum
                token_clip=config_dict.placeholder(float),  # upper clamp of a token's divergence
                importance_clip=config_dict.placeholder(
                    float
                ),  # the limit of the weight p_trainer / p_sampler; None: no weight
                # "answer": only what follows the thinking block; completions whose block does not end are left out. Or only the "thought"
                thinking="all",
                completions="all",  # of a question, or those that are graded "wrong", or only the "longest_wrong"
                mask_cut=False,  # leave out completions that hit the length limit
                skip_first=0,  # tokens left out at the beginning of a completion, or of its answer
                reduction="tokens",  # equal weights for tokens, or for "completions" (GRPO); "longest": Dr. GRPO
                # Which tokens count more: "alike", "position" (late ones), "low_probability", "teacher_sure", "student_unsure", "gap" (the roles
                # disagree on the sampled token), "agreement" (the teacher says the same without any one criterion), "credit" (where the
                # criteria speak that the completion fails)
                emphasis="alike",
                emphasis_strength=1.0,  # a token's weight is multiplied by 1 - strength + strength * emphasis
                emphasis_share=0.2,  # of the batch's tokens: the least likely ones, for "low_probability"
                chunk_size=256,  # positions whose logits are in memory at a time
            ),
            # AdamW; clip: the limit of the gradient's norm, 0: none; after the warm-up, "linear" and "cosine" fall to 0 at the last step.
            optimizer=dict(
                learning_rate=5e-6, schedule="constant", warmup_steps=0, clip=1.0, b1=0.9, b2=0.999, weight_decay=0.0
            ),
            # batch_size: completions per step; they are split into `microbatches`, which run one after the other.
            # row_lengths: sequences are packed into rows, which have one of so many lengths; 0: each is padded to the longest.
            # With packed rows, a microbatch has as many rows as it would have without, and an update takes as many as it needs.
            train=dict(
                steps=100,  # updates; whole rollouts. 0: as many as `epochs` take
                epochs=0.0,  # passes over the rows that fit, instead of `steps`; rounded up to whole rollouts
                batch_size=32,
                microbatches=1,
                row_lengths=2,
                router=True,  # whether full fine-tuning of a mixture of experts also trains its routers
                # of a mixture: "compare" records the experts that the sampler chose, and logs how often the trainer chooses others;
                # "replay" also computes the loss with those recorded
                routing_replay="off",
                split_rows=False,  # the devices of mesh.fsdp share each packed row, instead of having rows of their own
                batches_per_rollout=1,  # sampled together; each then serves its own update, in order
                passes_per_rollout=1,  # how often the updates go over a rollout's batches
                log_every=1,
            ),
            # every: steps between checkpoints; keep: how many are kept.
            checkpoint=dict(every=20, keep=2),
            log=dict(  # trackers besides `metrics.jsonl` and TensorBoard; an empty name: not logged there
                wandb="",  # PROJECT or ENTITY/PROJECT of Weights & Biases
                mlflow="",  # the experiment, at MLFLOW_TRACKING_URI
                trackio="",  # the project
                completions_every=50,  # steps between tables of completions that trackers get; 0: none
            ),
            # Sizes of the axes; `models.sharding.LAYOUTS` says what they split. -1: all remaining devices.
            mesh=dict(data=1, group=1, fsdp=-1, expert=1, tensor=1),
            eval=dict(
                grader="",  # empty: no evaluation; "world", "boxed" (last \\boxed{} against the reference), "rubric"
                path="",  # rows held out for evaluation
                splits=ConfigDict(),  # instead of a path, several sets: name -> path (or the world's split)
                # the path of each benchmark to evaluate, or "" for the place where it is published; None: not evaluated
                benchmarks={name: config_dict.placeholder(str) for name in BENCHMARKS},
                samples=1,  # completions of each question, when sampled
                every=0,  # > 0: also evaluate the student during training, every this many steps
                every_splits=(),  # the sets for that; empty: all
                count=256,  # the largest number of questions of a set
                batch_size=32,  # completions sampled at a time
                # the longest completion, thoughts included; None: as `sampling.max_new_tokens`
                max_new_tokens=config_dict.placeholder(int),
                # the thinking switch of student and teacher when they are evaluated; None: as in training
                thinking=config_dict.placeholder(bool),
                roles=("base", "teacher", "trained"),
                greedy=(False, True),  # modes: sampled, greedy
                temperature=1.0,  # when sampled; top-k and top-p are those of `sampling`
            ),
            # The merged model, and LoRA's adapter; float32, because bfloat16 rounds away most of what a small learning rate changed
            export=dict(merged=True, adapter=True, dtype="float32"),
        )
    )


def job(**stages: ConfigDict) -> ConfigDict:
    """Several stages run in the order given; stage i+1 may name `{workdir}/<stage i>/export` in its settings."""
    return ConfigDict(dict(stages=tuple(stages), **stages))


def stages_of(config: ConfigDict) -> list[tuple[str, ConfigDict]]:
    """The stages of a config as (name, config); the name of a single stage is empty."""
    return [(name, config[name]) for name in config.stages] if "stages" in config else [("", config)]


def to_json(config: ConfigDict | Mapping[str, Any]) -> str:
    """The config as stable, readable JSON."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else config
    return json.dumps(plain, indent=1, sort_keys=True, default=list)


def differences(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    """Keys whose values differ between two configs, given as plain dicts."""
    if not (isinstance(ours, Mapping) and isinstance(theirs, Mapping)):
        return [] if ours == theirs else [prefix]
    found = []
    for key in sorted(set(ours) | set(theirs)):
        found += differences(ours.get(key), theirs.get(key), f"{prefix}.{key}" if prefix else key)
    return found


def all_keys(config: ConfigDict, prefix: str = "") -> list[str]:
    """Every dotted key of a config, for suggestions."""
    keys = []
    for key in config:
        value = config.get_oneway_ref(key).get() if not isinstance(config[key], ConfigDict) else config[key]
        keys.append(prefix + key)
        if isinstance(value, ConfigDict):
            keys += all_keys(value, f"{prefix}{key}.")
    return keys


def with_defaults(plain: Mapping[str, Any]) -> ConfigDict:
    """A stage's config from the content of its `config.json`, with defaults for keys that are newer than the file."""
    config = stage()
    config.update(ConfigDict(plain))
    return config


def flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; tuples as lists."""
    found: dict[str, Any] = {}
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = list(value) if isinstance(value, tuple) else value
    return found

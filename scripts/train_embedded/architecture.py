"""Tokenizer, chat template, configuration and processor of the tiny Qwen2.5-VL: stock classes, tiny sizes."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from stsimdiff.data.clips.questions import all_stems, prompt
from stsimdiff.data.clips.vocabulary import ANSWER_WORDS, STATIC_SHAPES
from stsimdiff.data.clips.world import FRAMES, SIZE

WIDTH = 128  # of the language model and of a visual token
LAYERS = 6
PATCH = 7
MERGE = 2
VIDEO_TOKENS = (FRAMES // 2) * (SIZE // (PATCH * MERGE)) ** 2  # 512

OPEN_INSTRUCTION = "Answer briefly."  # training also asks for the word itself; the benchmark never does
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'video' -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif part['type'] == 'image' -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""


def open_prompt(stem: str) -> str:
    """A question without options, to be answered with a word."""
    return f"{stem}\n{OPEN_INSTRUCTION}"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the benchmark's own texts, so that each of its words is one token."""
    rng = random.Random(0)
    words = (*ANSWER_WORDS, *STATIC_SHAPES)
    stems = [*all_stems(), *(f"What is {word}?" for word in words)]
    corpus = []
    for _ in range(20):
        for stem in stems:
            corpus.append(f"user\n{prompt(stem, rng.sample(ANSWER_WORDS, 4))}\nassistant\n")
            corpus.append(open_prompt(stem))
            corpus += [f" {word}" for word in words]
        corpus += ["system\nYou are a helpful assistant.\n"] * 5
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """The untrained model: 3 vision blocks of width 64 and 6 language layers of width 128, 1.6 M weights."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 384,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
            "initializer_range": 0.06,
            "rms_norm_eps": 1e-6,
            # Sections of one frequency each interleave time, row and column, so that each of them has
            # fast and slow frequencies; content 10 to 30 tokens away needs slow ones (theta 10000).
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [1] * 14 + [2],
            },
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": True,
            "use_cache": True,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "tokens_per_second": 1,
            "window_size": 56,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0, 1, 2],
            "initializer_range": 0.06,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(config)


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLProcessor:
    """A processor that never enlarges 112 x 112 frames: default pixel limits would."""
    sizes = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2, "min_pixels": SIZE * SIZE}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(max_pixels=16 * SIZE * SIZE, **sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(max_pixels=SIZE * SIZE, cap_pixels_per_frame=True, **sizes),
        chat_template=CHAT_TEMPLATE,
    )


def save(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a folder that `AutoProcessor` and `AutoModelForImageTextToText` load."""
    model.config.get_text_config()._attn_implementation = "sdpa"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)

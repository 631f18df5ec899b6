"""Tiny models with PEFT adapters, and what PEFT makes of them.

`make DIR`: for each case a folder with `base`, `adapter`, and the weights after `merge_and_unload` in `default.safetensors` and
`safe.safetensors`, under the names the base's file has. Prints the cases' names.
`compare EXPECTED MERGED [EXPECTED MERGED ...]`: fails unless every tensor of each two files has the same bits.
"""

import json
import os
import sys
import warnings

import torch
from safetensors.torch import load_file, save_file

warnings.filterwarnings("ignore")
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]

# name: model, its dtype, the adapter's dtype, LoraConfig.
CASES = {
    "f32": ("llama", F32, F32, dict(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])),
    "bf16-patterns": ("llama", BF16, F32, dict(
        r=16, lora_alpha=32, target_modules=ATTENTION + MLP,
        rank_pattern={"layers.1.self_attn.q_proj": 3, "q_proj": 5, "down_proj": 24},
        alpha_pattern={"v_proj": 7, "layers.0.mlp.up_proj": 1.5})),
    "f16-rslora": ("llama", F16, F16, dict(r=4, lora_alpha=3, target_modules=ATTENTION, use_rslora=True)),
    "bf16-bf16": ("llama", BF16, BF16, dict(r=64, lora_alpha=16, target_modules=ATTENTION + MLP)),
    "f16-f32": ("llama", F16, F32, dict(r=33, lora_alpha=16, target_modules=MLP)),
    "f32-bf16": ("llama", F32, BF16, dict(r=100, lora_alpha=50, target_modules=ATTENTION)),
    "rank-1": ("llama", BF16, F32, dict(r=1, lora_alpha=1, target_modules=ATTENTION)),
    "rank-128": ("llama", BF16, F32, dict(r=128, lora_alpha=64, target_modules=ATTENTION + MLP)),
    "rank-128-f32": ("llama", F32, F32, dict(r=128, lora_alpha=64, target_modules=ATTENTION + MLP)),
    "saved-head": ("llama", BF16, F32, dict(r=8, lora_alpha=16, target_modules=["q_proj"], modules_to_save=["lm_head", "norm"])),
    "saved-both": ("llama", F16, F32, dict(
        r=8, lora_alpha=16, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])),
    "embedding": ("llama", BF16, F32, dict(r=8, lora_alpha=16, target_modules=["embed_tokens", "q_proj", "lm_head"])),
    "embedding-f16": ("llama", F16, F16, dict(r=12, lora_alpha=5, target_modules=["embed_tokens", "down_proj"])),
    "embedding-f32": ("llama", F32, BF16, dict(r=12, lora_alpha=5, target_modules=["embed_tokens"])),
    "embedding-tied": ("tied", BF16, BF16, dict(r=8, lora_alpha=16, target_modules=["embed_tokens", "v_proj"])),
    "bias": ("biased", BF16, F32, dict(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], bias="all")),
    "conv1d": ("gpt2", F32, F32, dict(r=8, lora_alpha=16, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "conv1d-bf16": ("gpt2", BF16, F32, dict(r=12, lora_alpha=16, target_modules=["c_fc", "c_proj", "wte"], fan_in_fan_out=True)),
    "conv1d-unsaid": ("gpt2", F16, F16, dict(r=5, lora_alpha=16, target_modules=["c_attn", "c_proj"])),
    "dora": ("llama", BF16, F32, dict(r=8, lora_alpha=16, target_modules=["q_proj"], use_dora=True)),
    "rank-256": ("llama", BF16, F32, dict(r=256, lora_alpha=64, target_modules=["q_proj"])),
}


def model_of(kind):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=72, n_layer=2, n_head=4, vocab_size=90, n_positions=32))
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=128, intermediate_size=200, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=120, max_position_embeddings=64, tie_word_embeddings=kind == "tied", attention_bias=kind == "biased"))


def randomise(parameters):
    for parameter in parameters:
        parameter.data.copy_(torch.randn(parameter.shape) * 0.05)


def make(root):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM
    for number, (name, (kind, dtype, factors, config)) in enumerate(CASES.items()):
        torch.manual_seed(number)
        folder = os.path.join(root, name)
        base, adapter = os.path.join(folder, "base"), os.path.join(folder, "adapter")
        model = model_of(kind)
        randomise(model.parameters())
        model.to(dtype).save_pretrained(base)
        load = lambda: AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        wrapped = get_peft_model(load(), LoraConfig(task_type="CAUSAL_LM", **config))
        randomise(p for p in wrapped.parameters() if p.requires_grad)
        wrapped.save_pretrained(adapter)
        weights = os.path.join(adapter, "adapter_model.safetensors")
        cast = {n: t.to(factors).contiguous() for n, t in load_file(weights).items()}
        save_file(cast, weights, metadata={"format": "pt"})
        stored = load_file(os.path.join(base, "model.safetensors"))
        for rule in ["default", "safe"]:
            state = PeftModel.from_pretrained(load(), adapter).merge_and_unload(safe_merge=rule == "safe").state_dict()
            merged = {n: state[n].clone().contiguous() for n in stored}
            save_file(merged, os.path.join(folder, f"{rule}.safetensors"))
        print(name)


def compare(*files):
    for expected, found in zip(files[::2], files[1::2]):
        compare_two(expected, found)


def compare_two(path, found):
    bits = {2: torch.int16, 4: torch.int32}
    expected, found = load_file(path), load_file(found)
    assert sorted(expected) == sorted(found), set(expected) ^ set(found)
    wrong = {}
    for name, tensor in expected.items():
        other = found[name]
        assert tensor.dtype == other.dtype and tensor.shape == other.shape, name
        size = bits[tensor.element_size()]
        differ = int((tensor.view(size) != other.view(size)).sum())
        if differ:
            wrong[name] = f"{differ} of {tensor.numel()}"
    assert not wrong, f"{path}: {json.dumps(wrong)}"


if __name__ == "__main__":
    {"make": make, "compare": compare}[sys.argv[1]](*sys.argv[2:])

"""INT8, logits and divergences by torch and transformers: what ours are compared with.

    quality.py int8 BASE FINETUNE GRANULARITY REBUILT    JSON of errors per tensor; REBUILT (a model) must be ours bit for bit
    quality.py logits OUT MODEL... -- PROMPT...          tokens of each model as JSON; f32 logits to OUT/0, OUT/1, ...
    quality.py models OUT                                tiny random models of several architectures
    quality.py behaviour FINETUNE OTHER MAX_LENGTH PROMPT...   JSON of the statistics of llama-perplexity --kl-divergence
"""

import json
import shutil
import sys

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

transformers.utils.logging.set_verbosity_error()
torch.set_num_threads(1)


def scale_groups(d, granularity):
    """Views of d, a row of elements for each scale."""
    if granularity == "tensor":
        return [d.reshape(1, -1)]
    rows = d.reshape(-1, d.shape[-1])
    if granularity == "row":
        return [rows]
    return list(rows.split(128, dim=1))


def int8(base, finetune, granularity, rebuilt):
    base, finetune = load_file(base + "/model.safetensors"), load_file(finetune + "/model.safetensors")
    rebuilt = load_file(rebuilt + "/model.safetensors")
    out = {}
    for name, target in finetune.items():
        if target.dim() < 2 or base[name].shape != target.shape:
            assert torch.equal(rebuilt[name], target), name
            continue
        d = target.float() - base[name].float()
        value = torch.empty_like(d)
        codes_of = torch.empty_like(d)
        for group, into, codes_into in zip(
            scale_groups(d, granularity), scale_groups(value, granularity), scale_groups(codes_of, granularity)
        ):
            scale = group.abs().amax(dim=1, keepdim=True) / 127
            codes = torch.where(scale > 0, torch.round(group / scale), torch.zeros_like(group)).clamp(-127, 127)
            into.copy_(codes * scale)
            codes_into.copy_(codes)
        made = torch.where(codes_of == 0, base[name], (base[name].float() + value).to(target.dtype))
        assert torch.equal(made, rebuilt[name]), name
        error, d64, v64 = (value - d).double().abs(), d.double(), value.double()
        norms = d64.norm() * v64.norm()
        out[name] = {
            "max_abs_error": (v64 - d64).abs().max().item(),
            "mean_abs_error": (v64 - d64).abs().mean().item(),
            "relative_error": ((v64 - d64).norm() / d64.norm()).item() if d64.norm() > 0 else 0.0,
            "cosine": ((d64 * v64).sum() / norms).item() if norms > 0 else 1.0,
            "exact_share": (made == target).double().mean().item(),
        }
    print(json.dumps(out))


def load(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def run(path, prompts, max_length, tokenizer=None):
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=(tokenizer or path) + "/tokenizer.json")
    model = load(path)
    tokens = [tokenizer(p, truncation=True, max_length=max_length)["input_ids"] for p in prompts]
    with torch.no_grad():
        return tokens, [model(torch.tensor([t])).logits[0].float() for t in tokens]


def logits(out, *rest):
    end = rest.index("--")
    all_tokens = []
    for number, model in enumerate(rest[:end]):
        limit = transformers.AutoConfig.from_pretrained(model).max_position_embeddings
        tokens, found = run(model, rest[end + 1 :], min(128, limit))
        torch.cat([f.flatten() for f in found]).numpy().astype("<f4").tofile(f"{out}/{number}")
        all_tokens.append(tokens)
    print(json.dumps(all_tokens))


def models(out, tokenizer):
    T = transformers
    small = dict(
        vocab_size=1024, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2,
    )
    scaling = dict(
        rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32,
    )
    wanted = {
        "llama3": T.LlamaConfig(
            **small, rope_parameters=scaling, attention_bias=True, mlp_bias=True, tie_word_embeddings=False, head_dim=32
        ),
        "linear": T.LlamaConfig(**small, rope_parameters=dict(rope_type="linear", rope_theta=5000.0, factor=2.0)),
        "mistral": T.MistralConfig(**small, sliding_window=16),
        "qwen2": T.Qwen2Config(**small, tie_word_embeddings=True),
        "qwen3": T.Qwen3Config(**small, head_dim=16),
        "gpt2": T.GPT2Config(
            vocab_size=1024, n_embd=64, n_layer=2, n_head=4, n_positions=128, initializer_range=0.2,
            scale_attn_by_inverse_layer_idx=True,
        ),
    }
    torch.manual_seed(1)
    for name, config in wanted.items():
        config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 2
        model = T.AutoModelForCausalLM.from_config(config)
        # Norms and biases start as ones and zeros, which would hide mistakes.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data += 0.3 * torch.randn_like(parameter)
        model.save_pretrained(f"{out}/{name}")
        shutil.copy(tokenizer + "/tokenizer.json", f"{out}/{name}/tokenizer.json")
    print(json.dumps(sorted(wanted)))


def measured(values):
    return values.mean().item(), (values.var(ddof=0) / (len(values) - 1)) ** 0.5


def behaviour(finetune, other, max_length, *prompts):
    tokens, reference = run(finetune, prompts, int(max_length))
    _, found = run(other, prompts, int(max_length), finetune)
    parts = []
    for ids, r, m in zip(tokens, reference, found):
        r, m = (torch.log_softmax(x[:-1].double(), dim=-1) for x in (r, m))
        after = torch.tensor(ids[1:])[:, None]
        parts.append((
            -r.gather(1, after)[:, 0], -m.gather(1, after)[:, 0], (r.exp() * (r - m)).sum(dim=1),
            (r.argmax(1) == m.argmax(1)).double(),
        ))
    ref_loss, loss, kl, same = (torch.cat(p).numpy() for p in zip(*parts))
    dp = np.exp(-loss) - np.exp(-ref_loss)
    n = len(kl)
    (mean, error), (ref_mean, ref_error) = measured(loss), measured(ref_loss)
    covariance = ((loss - mean) * (ref_loss - ref_mean)).mean() / (n - 1)
    print(json.dumps({
        "positions": n,
        "perplexity": {"value": np.exp(mean), "error": np.exp(mean) * error},
        "reference_perplexity": {"value": np.exp(ref_mean), "error": np.exp(ref_mean) * ref_error},
        "ln_ratio": {"value": mean - ref_mean, "error": max(0, error**2 + ref_error**2 - 2 * covariance) ** 0.5},
        "same_top": {"value": same.mean(), "error": (same.mean() * (1 - same.mean()) / (n - 1)) ** 0.5},
        "divergence": {
            "mean": kl.mean(), "error": measured(kl)[1], "max": kl.max(), "p99_9": np.percentile(kl, 99.9),
            "p99": np.percentile(kl, 99), "p95": np.percentile(kl, 95), "median": np.median(kl),
        },
        "delta_p": {
            "mean": dp.mean(), "error": measured(dp)[1], "rms": (dp**2).mean() ** 0.5, "p99": np.percentile(dp, 99),
            "p5": np.percentile(dp, 5), "median": np.median(dp), "max": dp.max(), "min": dp.min(),
        },
    }))


if __name__ == "__main__":
    {"int8": int8, "logits": logits, "models": models, "behaviour": behaviour}[sys.argv[1]](*sys.argv[2:])

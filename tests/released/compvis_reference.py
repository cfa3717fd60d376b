"""The released networks a second time, for tests: plain functions over a dict of weights with CompVis names.

Written from the description of the architecture, with loops where the library has modules. Whatever weight a
computation asks for first is drawn then, so that names and shapes come from here and not from what is tested.
"""

import math

import torch
import torch.nn.functional as F


class Weights(dict):
    """{name: tensor}, drawn on demand."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.draw = torch.Generator().manual_seed(seed)

    def ask(self, name, *shape, mean=0.0):
        if name not in self:
            scale = 1.0 if len(shape) < 2 else 1 / math.sqrt(math.prod(shape[1:]))
            self[name] = mean + (0.1 if len(shape) < 2 else scale) * torch.randn(shape, generator=self.draw)
        assert self[name].shape == shape, f"{name}: {tuple(self[name].shape)} and {shape}"
        return self[name]


def conv(w, name, x, out, k=3, stride=1, pad=None):
    weight = w.ask(f"{name}.weight", out, x.shape[1], k, k)
    return F.conv2d(x, weight, w.ask(f"{name}.bias", out), stride=stride, padding=k // 2 if pad is None else pad)


def linear(w, name, x, out, bias=True):
    return F.linear(x, w.ask(f"{name}.weight", out, x.shape[-1]), w.ask(f"{name}.bias", out) if bias else None)


def group_norm(w, name, x, eps):
    c = x.shape[1]
    y = x.reshape(len(x), 32, -1)
    y = (y - y.mean(2, keepdim=True)) / (y.var(2, unbiased=False, keepdim=True) + eps).sqrt()
    gain, bias = w.ask(f"{name}.weight", c, mean=1.0), w.ask(f"{name}.bias", c)
    return y.reshape(x.shape) * gain[:, None, None] + bias[:, None, None]


def layer_norm(w, name, x):
    y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return y * w.ask(f"{name}.weight", x.shape[-1], mean=1.0) + w.ask(f"{name}.bias", x.shape[-1])


def swish(x):
    return x / (1 + (-x).exp())


def resize(x, direction):
    if direction == "down":
        return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
    return x if direction is None else x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def unet(w: Weights, p: dict, x, t, context=None):
    """The U-Net of the YAML parameters `p`."""
    ch, mults = p["model_channels"], p["channel_mult"]
    half = ch // 2
    angles = t[:, None].double() * torch.exp(-math.log(10000) * torch.arange(half).double() / half)
    code = torch.cat([angles.cos(), angles.sin()], 1).float()
    emb = linear(w, "time_embed.2", swish(linear(w, "time_embed.0", code, 4 * ch)), 4 * ch)

    def res(name, h, out, direction=None):
        skip = resize(h, direction)
        y = resize(swish(group_norm(w, f"{name}.in_layers.0", h, 1e-5)), direction)
        y = conv(w, f"{name}.in_layers.2", y, out)
        shift_scale = p.get("use_scale_shift_norm", False)
        e = linear(w, f"{name}.emb_layers.1", swish(emb), 2 * out if shift_scale else out)[:, :, None, None]
        if shift_scale:
            y = group_norm(w, f"{name}.out_layers.0", y, 1e-5) * (1 + e[:, :out]) + e[:, out:]
        else:
            y = group_norm(w, f"{name}.out_layers.0", y + e, 1e-5)
        y = conv(w, f"{name}.out_layers.3", swish(y), out)
        return y + (skip if h.shape[1] == out else conv(w, f"{name}.skip_connection", skip, out, k=1))

    def attend(name, h):
        c = h.shape[1]
        width, number = p.get("num_head_channels", -1), p.get("num_heads", -1)
        heads = number if width == -1 else c // width
        if p.get("use_spatial_transformer", False):
            return spatial_transformer(w, name, h, heads, p.get("transformer_depth", 1), context,
                                       p.get("use_linear_in_transformer", False))
        return attention_block(w, name, h, heads, p.get("use_new_attention_order", False))

    n, hs, h = 0, [], conv(w, "input_blocks.0.0", x, ch)
    hs.append(h)
    for level, mult in enumerate(mults):
        for _ in range(p["num_res_blocks"]):
            n += 1
            h = res(f"input_blocks.{n}.0", h, ch * mult)
            if 2**level in p["attention_resolutions"]:
                h = attend(f"input_blocks.{n}.1", h)
            hs.append(h)
        if level < len(mults) - 1:
            n += 1
            if p.get("resblock_updown", False):
                h = res(f"input_blocks.{n}.0", h, ch * mult, "down")
            else:
                h = conv(w, f"input_blocks.{n}.0.op", h, ch * mult, stride=2)
            hs.append(h)
    h = res("middle_block.0", h, h.shape[1])
    h = res("middle_block.2", attend("middle_block.1", h), h.shape[1])
    n = -1
    for level in reversed(range(len(mults))):
        for block in range(p["num_res_blocks"] + 1):
            n, part = n + 1, 1
            h = res(f"output_blocks.{n}.0", torch.cat([h, hs.pop()], 1), ch * mults[level])
            if 2**level in p["attention_resolutions"]:
                h, part = attend(f"output_blocks.{n}.1", h), 2
            if level and block == p["num_res_blocks"]:
                name = f"output_blocks.{n}.{part}"
                h = res(name, h, h.shape[1], "up") if p.get("resblock_updown", False) else conv(
                    w, f"{name}.conv", resize(h, "up"), h.shape[1])
    return conv(w, "out.2", swish(group_norm(w, "out.0", h, 1e-5)), p["out_channels"])


def attention_block(w, name, x, heads, new_order):
    """One layer for q, k and v. Legacy: head by head, each q, k, v; new: q of all heads, then k, then v."""
    b, c, height, width = x.shape
    d = c // heads
    flat = group_norm(w, f"{name}.norm", x, 1e-5).reshape(b, c, -1)
    qkv = torch.einsum("oc,bcn->bon", w.ask(f"{name}.qkv.weight", 3 * c, c, 1)[:, :, 0], flat)
    qkv = qkv + w.ask(f"{name}.qkv.bias", 3 * c)[:, None]
    out = []
    for i in range(heads):
        if new_order:
            q, k, v = (qkv[:, part * c + i * d:part * c + (i + 1) * d] for part in range(3))
        else:
            q, k, v = (qkv[:, (3 * i + part) * d:(3 * i + part + 1) * d] for part in range(3))
        scores = torch.einsum("bdn,bdm->bnm", q * d**-0.25, k * d**-0.25)
        out.append(torch.einsum("bnm,bdm->bdn", scores.softmax(-1), v))
    y = torch.einsum("oc,bcn->bon", w.ask(f"{name}.proj_out.weight", c, c, 1)[:, :, 0], torch.cat(out, 1))
    return x + (y + w.ask(f"{name}.proj_out.bias", c)[:, None]).reshape(x.shape)


def token_attention(w, name, x, source, heads, head_dim, out=".to_out.0"):
    q, k, v = (linear(w, f"{name}.to_{letter}", tokens, heads * head_dim, bias=False)
               for letter, tokens in (("q", x), ("k", source), ("v", source)))
    parts = [((q_ @ k_.transpose(1, 2)) * head_dim**-0.5).softmax(-1) @ v_ for q_, k_, v_ in
             zip(q.split(head_dim, 2), k.split(head_dim, 2), v.split(head_dim, 2), strict=True)]
    return linear(w, name + out, torch.cat(parts, 2), x.shape[-1])


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def spatial_transformer(w, name, x, heads, depth, context, as_linear):
    b, c, height, width = x.shape

    def project(part, tokens):
        shape = (c, c) if as_linear else (c, c, 1, 1)
        weight = w.ask(f"{name}.{part}.weight", *shape).reshape(c, c)
        return tokens @ weight.T + w.ask(f"{name}.{part}.bias", c)

    h = group_norm(w, f"{name}.norm", x, 1e-6).reshape(b, c, -1).transpose(1, 2)
    h = project("proj_in", h)
    for i in range(depth):
        here = f"{name}.transformer_blocks.{i}"
        y = layer_norm(w, f"{here}.norm1", h)
        h = h + token_attention(w, f"{here}.attn1", y, y, heads, c // heads)
        y = layer_norm(w, f"{here}.norm2", h)
        h = h + token_attention(w, f"{here}.attn2", y, context, heads, c // heads)
        y = linear(w, f"{here}.ff.net.0.proj", layer_norm(w, f"{here}.norm3", h), 8 * c)
        h = h + linear(w, f"{here}.ff.net.2", y[..., :4 * c] * gelu(y[..., 4 * c:]), c)
    return x + project("proj_out", h).transpose(1, 2).reshape(x.shape)


def stage_res(w, name, x, out):
    y = conv(w, f"{name}.conv1", swish(group_norm(w, f"{name}.norm1", x, 1e-6)), out)
    y = conv(w, f"{name}.conv2", swish(group_norm(w, f"{name}.norm2", y, 1e-6)), out)
    return y + (x if x.shape[1] == out else conv(w, f"{name}.nin_shortcut", x, out, k=1))


def stage_attention(w, name, x, kind):
    if kind == "none":
        return x
    c = x.shape[1]
    y = group_norm(w, f"{name}.norm", x, 1e-6)
    q, k, v = (conv(w, f"{name}.{letter}", y, c, k=1).flatten(2) for letter in "qkv")
    weights = (torch.einsum("bcn,bcm->bnm", q, k) * c**-0.5).softmax(-1)
    return x + conv(w, f"{name}.proj_out", torch.einsum("bnm,bcm->bcn", weights, v).reshape(x.shape), c, k=1)


def stage_middle(w, half, h, kind):
    h = stage_res(w, f"{half}.mid.block_1", h, h.shape[1])
    h = stage_attention(w, f"{half}.mid.attn_1", h, kind)
    return stage_res(w, f"{half}.mid.block_2", h, h.shape[1])


def encode(w: Weights, p: dict, x):
    """What `quant_conv` gives: the latent (VQ) or its moments (KL). attn_resolutions are sizes at p's resolution."""
    dd = p["ddconfig"]
    kind, size = dd.get("attn_type", "vanilla"), dd["resolution"]
    h = conv(w, "encoder.conv_in", x, dd["ch"])
    for level, mult in enumerate(dd["ch_mult"]):
        for block in range(dd["num_res_blocks"]):
            h = stage_res(w, f"encoder.down.{level}.block.{block}", h, dd["ch"] * mult)
            if size in dd["attn_resolutions"]:
                h = stage_attention(w, f"encoder.down.{level}.attn.{block}", h, kind)
        if level < len(dd["ch_mult"]) - 1:
            size //= 2
            h = conv(w, f"encoder.down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), h.shape[1], stride=2, pad=0)
    h = swish(group_norm(w, "encoder.norm_out", stage_middle(w, "encoder", h, kind), 1e-6))
    twice = 2 if dd["double_z"] else 1
    return conv(w, "quant_conv", conv(w, "encoder.conv_out", h, twice * dd["z_channels"]), twice * p["embed_dim"], k=1)


def decode(w: Weights, p: dict, z):
    """Latent, quantised where it has to be, to image."""
    dd = p["ddconfig"]
    kind, size = dd.get("attn_type", "vanilla"), dd["resolution"] // 2 ** (len(dd["ch_mult"]) - 1)
    h = conv(w, "post_quant_conv", z, dd["z_channels"], k=1)
    h = stage_middle(w, "decoder", conv(w, "decoder.conv_in", h, dd["ch"] * dd["ch_mult"][-1]), kind)
    for level in reversed(range(len(dd["ch_mult"]))):
        for block in range(dd["num_res_blocks"] + 1):
            h = stage_res(w, f"decoder.up.{level}.block.{block}", h, dd["ch"] * dd["ch_mult"][level])
            if size in dd["attn_resolutions"]:
                h = stage_attention(w, f"decoder.up.{level}.attn.{block}", h, kind)
        if level:
            size *= 2
            h = conv(w, f"decoder.up.{level}.upsample.conv", resize(h, "up"), h.shape[1])
    return conv(w, "decoder.conv_out", swish(group_norm(w, "decoder.norm_out", h, 1e-6)), dd["out_ch"])


def nearest_code(w: Weights, p: dict, z):
    """Every latent vector's nearest code, by trying all; and which it is."""
    book = w.ask("quantize.embedding.weight", p["n_embed"], p["embed_dim"])
    distance = (z[:, None] - book[None, :, :, None, None]).square().sum(2)      # (B,K,h,w)
    indices = distance.argmin(1)
    return book[indices].movedim(3, 1), indices


def text_encoder(w: Weights, ids, vocabulary, width, layers, length, prefix="transformer."):
    """Pre-LN transformer of 8 heads of 64 with learned positions, no mask; ids (B,M) -> (B,M,width)."""
    h = w.ask(f"{prefix}token_emb.weight", vocabulary, width)[ids]
    h = h + w.ask(f"{prefix}pos_emb.emb.weight", length, width)[: ids.shape[1]]
    for i in range(layers):
        here = f"{prefix}attn_layers.layers.{2 * i}"
        y = layer_norm(w, f"{here}.0", h)
        h = h + token_attention(w, f"{here}.1", y, y, 8, 64, out=".to_out")
        here = f"{prefix}attn_layers.layers.{2 * i + 1}"
        y = gelu(linear(w, f"{here}.1.net.0.0", layer_norm(w, f"{here}.0", h), 4 * width))
        h = h + linear(w, f"{here}.1.net.2", y, width)
    w.ask(f"{prefix}to_logits.weight", vocabulary, width), w.ask(f"{prefix}to_logits.bias", vocabulary)     # never used
    return layer_norm(w, f"{prefix}norm", h)

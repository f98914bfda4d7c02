"""A Vision Transformer in plain NumPy and float64: the numbers that the Keras one must give.

Written from the papers and loop by loop rather than fast: one image patch, one head, one kernel offset at a time.
Shapes: B batch, H x W image, C channels, P patch, N tokens, D width, d width of a head, M hidden size of the MLP.
"""

import math

import numpy as np

erf = np.vectorize(math.erf, otypes=[float])


def weights_of(model):
    """The weights of a Keras model or layer by path, as NumPy arrays."""
    return dict(zip((weight.path for weight in model.weights), model.get_weights(), strict=True))


def random_images(config, batch=2, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, *config.image_shape)).astype("float32")


class Reference:
    """The model of a `ViTConfig` with the weights of `weights_of`.

    Attributes:
        macs: Multiply-adds of the matrix products and convolutions done so far.
    """

    def __init__(self, config, weights):
        self.config = config
        self.weights = {path: np.asarray(value, "float64") for path, value in weights.items()}
        self.macs = 0

    def __call__(self, images):
        """Every intermediate of (B, H, W, C) images by name, as `keras_vit.features` names them."""
        config = self.config
        images = np.asarray(images, "float64")
        if config.data_format == "channels_first":
            images = np.moveaxis(images, 1, 3)
        out = {"stem": self.conv_stem(images) if config.stem == "conv" else self.patches(images)}
        x = out["encoder"] = self.encode(out["stem"])
        if config.pre_norm:
            x = out["pre_norm"] = self.norm(x, "pre_norm")
        for block in range(config.depth):
            x, scores = (self.twins if config.block == "twin" else self.block)(x, f"block_{block}")
            out[f"block_{block}"], out[f"block_{block}/attention"] = x, scores
        if config.norm_after_pool:
            x = out["pool"] = self.pool(x)
            x = out["norm"] = self.norm(x, "norm")
        else:
            if config.final_norm:
                x = out["norm"] = self.norm(x, "norm")
            x = out["pool"] = self.pool(x)
        if config.pre_logits_dim:
            x = out["pre_logits"] = np.tanh(self.dense(x, "pre_logits"))
        if config.num_classes:
            x = out["head"] = self.dense(x, "head")
        if config.distillation:
            y = out["pool_dist"] = out["norm"][:, 1]
            if config.num_classes:
                y = out["head_dist"] = self.dense(y, "head_dist")
            x = out["average"] = (x + y) / 2
        out["output"] = x
        return out

    def product(self, a, b):
        self.macs += math.prod(a.shape) * b.shape[-1]
        return a @ b

    def dense(self, x, name):
        y = self.product(x, self.weights[f"{name}/kernel"])
        return y + self.weights[f"{name}/bias"] if f"{name}/bias" in self.weights else y

    def norm(self, x, name):
        centred = x if self.config.rms_norm else x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + self.config.norm_epsilon)
        return centred / deviation * self.weights[f"{name}/gamma"] + self.weights.get(f"{name}/beta", 0)

    def patches(self, images):
        """Row by row; within a patch row, column, channel."""
        rows, columns = self.config.patch_size
        cut = [
            images[:, top : top + rows, left : left + columns].reshape(len(images), -1)
            for top in range(0, images.shape[1], rows)
            for left in range(0, images.shape[2], columns)
        ]
        return np.stack(cut, axis=1)  # (B, N, P*P*C)

    def conv_stem(self, x):
        depth = self.config.stem_depth
        for index in range(len(self.config.stem_widths)):
            x = self.convolution(x, f"stem/conv{index}", 2)
            x = x if depth else exact_gelu(x)
            for block in (f"stem/block{index}_{number}" for number in range(depth)):
                y = exact_gelu(self.convolution(self.norm(x, f"{block}/norm"), f"{block}/conv1", 1))
                x = x + self.convolution(y, f"{block}/conv2", 1)
        return x.reshape(len(x), -1, x.shape[-1])

    def convolution(self, x, name, stride):
        kernel = self.weights[f"{name}/kernel"]  # (3, 3, C, C')
        before = 2 - stride  # 'same' with stride 2 on even sides adds only at the end
        padded = np.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
        height, width = x.shape[1] // stride, x.shape[2] // stride
        y = 0
        for row in range(3):
            for column in range(3):
                rows = slice(row, row + stride * (height - 1) + 1, stride)
                columns = slice(column, column + stride * (width - 1) + 1, stride)
                y = y + self.product(padded[:, rows, columns], kernel[row, column])
        return y + self.weights.get(f"{name}/bias", 0)

    def encode(self, patches):
        config = self.config
        x = self.dense(patches, "encoder/projection")
        prefix = []
        if config.pool in ("cls", "cls_gap") or config.class_token:
            prefix += [self.weights["encoder/class_token"][0, 0]]
        prefix += [self.weights["encoder/register_tokens"][0, index] for index in range(config.registers)]
        placed = {"none": 0, "class": len(prefix) - config.registers, "all": len(prefix)}[config.prefix_positions]
        if config.position == "learned":
            table = self.weights["encoder/position"][0]
        elif config.position == "sincos1d":
            table = sincos1d(placed + x.shape[1], config.width)
        elif config.position == "sincos2d":
            table, placed = sincos2d(config.image_size, config.patch_size, config.width), 0
        else:
            table, placed = np.zeros((x.shape[1], config.width)), 0
        prefix = [token + table[index] if index < placed else token for index, token in enumerate(prefix)]
        x = x + table[placed:]
        return np.concatenate([np.broadcast_to(token, (len(x), 1, config.width)) for token in prefix] + [x], axis=1)

    def attend(self, q, k, v, mask=None):
        """One head: q (B, Q, d), k and v (B, N, d) -> (B, Q, d), weights (B, Q, N)."""
        scores = self.product(q, np.swapaxes(k, 1, 2)) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = np.where(mask[:, None] if mask.ndim == 2 else mask, scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        return self.product(scores, v), scores

    def attention(self, x, name, mask=None):
        q, k, v = np.split(self.dense(x, f"{name}/qkv"), 3, axis=-1)
        q, v = q + self.weights.get(f"{name}/query_bias", 0), v + self.weights.get(f"{name}/value_bias", 0)
        heads, scores = [], []
        for part in np.split(np.arange(self.config.width), self.config.num_heads):
            head_q, head_k = q[..., part], k[..., part]
            if self.config.qk_norm:
                head_q, head_k = self.norm(head_q, f"{name}/q_norm"), self.norm(head_k, f"{name}/k_norm")
            if self.config.rotary != "none":
                head_q, head_k = self.turn(head_q), self.turn(head_k)
            y, weights = self.attend(head_q, head_k, v[..., part], mask)
            heads.append(y)
            scores.append(weights)
        y = np.concatenate(heads, -1)
        y = self.norm(y, f"{name}/norm") if self.config.attention_norm else y
        return self.dense(y, f"{name}/projection"), np.stack(scores, 1)

    def turn(self, x):
        """Queries or keys (B, N, d) of one head, the patches' turned in the complex plane: pair by pair, token by token."""
        config, half = self.config, x.shape[-1] // 2
        rows, columns = config.grid_size
        x, prefix = x.copy(), x.shape[1] - rows * columns
        for token in range(rows * columns):
            for pair in range(half):
                axis, i = divmod(pair, half // 2)  # the first half of the pairs for rows, the second for columns
                place, count = divmod(token, columns)[axis], (rows, columns)[axis]
                if config.rotary == "centered":
                    coordinate = 2 * math.pi * ((place + 0.5) / count * 2 - 1)
                else:
                    coordinate = (place + config.rotary_offset) * (config.rotary_grid or (rows, columns))[axis] / count
                angle = coordinate * config.rotary_base ** (-i / (half // 2))
                number = (x[:, prefix + token, pair] + 1j * x[:, prefix + token, pair + half]) * np.exp(1j * angle)
                x[:, prefix + token, pair], x[:, prefix + token, pair + half] = number.real, number.imag
        return x

    def mlp(self, x, name):
        x = self.dense(x, f"{name}/fc1")
        if self.config.mlp == "swiglu":
            gate, x = np.split(x, 2, axis=-1)
            x = gate / (1 + np.exp(-gate)) * x
        elif self.config.mlp == "gelu_tanh":
            x = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        elif self.config.mlp == "gelu_quick":
            x = x / (1 + np.exp(-1.702 * x))
        else:
            x = exact_gelu(x)
        if self.config.mlp_norm and not name.startswith("pool"):
            x = self.norm(x, f"{name}/norm")
        return self.dense(x, f"{name}/fc2")

    def block(self, x, name, mask=None):
        y, scores = self.attention(self.norm(x, f"{name}/norm1"), f"{name}/attention", mask)
        if self.config.block == "parallel":
            y = y + self.mlp(self.norm(x, f"{name}/norm1"), f"{name}/mlp")
            return x + y * self.weights.get(f"{name}/scale1/gamma", 1), scores
        x = x + y * self.weights.get(f"{name}/scale1/gamma", 1)
        y = self.mlp(self.norm(x, f"{name}/norm2"), f"{name}/mlp")
        return x + y * self.weights.get(f"{name}/scale2/gamma", 1), scores

    def twins(self, x, name):
        scores = []
        for branch, norm, scale in ((self.attention, "norm1", "scale1"), (self.mlp, "norm2", "scale2")):
            total = x
            for part in (name, f"{name}/twin"):
                y = branch(self.norm(x, f"{part}/{norm}"), f"{part}/{'attention' if norm == 'norm1' else 'mlp'}")
                if norm == "norm1":
                    y, weights = y
                    scores.append(weights)
                total = total + y * self.weights.get(f"{part}/{scale}/gamma", 1)
            x = total
        return x, np.concatenate(scores, 1)

    def pool(self, x):
        config = self.config
        if config.pool == "cls":
            return x[:, 0]
        if config.pool in ("gap", "cls_gap"):
            mean = x[:, -math.prod(config.grid_size) :].mean(1)
            return mean if config.pool == "gap" else np.concatenate([x[:, 0], mean], axis=-1)
        if not config.pool_prefix:
            x = x[:, -math.prod(config.grid_size) :]
        q = self.dense(self.weights["pool/probe"], "pool/query")  # (1, D)
        k, v = np.split(self.dense(x, "pool/key_value"), 2, axis=-1)
        heads = []
        for part in np.split(np.arange(config.width), config.pool_heads or config.num_heads):
            query = np.broadcast_to(q[:, part], (len(x), 1, len(part)))
            heads.append(self.attend(query, k[..., part], v[..., part])[0])
        y = self.dense(np.concatenate(heads, -1), "pool/projection")[:, 0]
        return y + self.mlp(self.norm(y, "pool/norm"), "pool/mlp")


def exact_gelu(x):
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def sincos1d(length, width):
    """'Attention is all you need', section 3.5, element by element."""
    table = np.zeros((length, width))
    for position in range(length):
        for i in range(width // 2):
            angle = position / 10_000 ** (2 * i / width)
            table[position, 2 * i], table[position, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return table


def sincos2d(image_size, patch_size, width):
    """Quarters of the width: sine of x, cosine of x, sine of y, cosine of y; frequencies from 1 to 1/10,000."""
    quarter, rows, columns = width // 4, image_size[0] // patch_size[0], image_size[1] // patch_size[1]
    table = np.zeros((rows * columns, width))
    for token in range(rows * columns):
        y, x = divmod(token, columns)
        for i in range(quarter):
            frequency = 10_000 ** (-i / (quarter - 1))
            values = math.sin(x * frequency), math.cos(x * frequency), math.sin(y * frequency), math.cos(y * frequency)
            table[token, i::quarter] = values
    return table

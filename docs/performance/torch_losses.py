"""Losses as the reference implementations write them: RepDistiller, and mdistiller for DKD, KDSVD, OFD and ReviewKD."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def kd(student, teacher, temperature=4.0):
    """Kullback-Leibler divergence of softened logits, batch mean times T^2."""
    log_p_s = F.log_softmax(student / temperature, dim=1)
    p_t = F.softmax(teacher / temperature, dim=1)
    return F.kl_div(log_p_s, p_t, reduction="sum") * temperature**2 / student.shape[0]


def target_and_rest(p, target):
    """[probability of the target class, sum of all others]."""
    mask = torch.zeros_like(p).scatter_(1, target.unsqueeze(1), 1).bool()
    return torch.cat([(p * mask).sum(1, keepdim=True), (p * ~mask).sum(1, keepdim=True)], 1)


def dkd(student, teacher, target, alpha=1.0, beta=8.0, temperature=4.0):
    """Decoupled distillation, with mdistiller's mask of -1000."""
    mask = torch.zeros_like(student).scatter_(1, target.unsqueeze(1), 1)
    scale = temperature**2 / student.shape[0]
    p_s = target_and_rest(F.softmax(student / temperature, dim=1), target)
    p_t = target_and_rest(F.softmax(teacher / temperature, dim=1), target)
    tckd = F.kl_div(torch.log(p_s), p_t, reduction="sum") * scale
    rest_t = F.softmax(teacher / temperature - 1000.0 * mask, dim=1)
    rest_s = F.log_softmax(student / temperature - 1000.0 * mask, dim=1)
    nckd = F.kl_div(rest_s, rest_t, reduction="sum") * scale
    return alpha * tckd + beta * nckd


def pool_match(f_s, f_t):
    """Average-pool the larger of two maps to the height of the smaller."""
    h_s, h_t = f_s.shape[2], f_t.shape[2]
    if h_s > h_t:
        return F.adaptive_avg_pool2d(f_s, (h_t, h_t)), f_t
    if h_s < h_t:
        return f_s, F.adaptive_avg_pool2d(f_t, (h_s, h_s))
    return f_s, f_t


def attention(f):
    """Normalised mean of squares over the channels."""
    return F.normalize(f.pow(2).mean(1).reshape(f.size(0), -1))


def at(f_s, f_t):
    """Attention transfer of one stage."""
    f_s, f_t = pool_match(f_s, f_t)
    return (attention(f_s) - attention(f_t)).pow(2).mean()


def poly_kernel(a, b):
    """Squared inner products of all channel pairs, by a broadcast product."""
    return (a.unsqueeze(1) * b.unsqueeze(2)).sum(-1).pow(2)


def nst(f_s, f_t):
    """Neuron selectivity transfer of one stage."""
    f_s, f_t = pool_match(f_s, f_t)
    f_s = F.normalize(f_s.flatten(2), dim=2)
    f_t = F.normalize(f_t.flatten(2), dim=2)
    both = poly_kernel(f_t, f_t).mean().detach() + poly_kernel(f_s, f_s).mean()
    return both - 2 * poly_kernel(f_s, f_t).mean()


def gram(f):
    """Row-normalised inner products of the samples."""
    f = f.reshape(f.shape[0], -1)
    return F.normalize(torch.mm(f, torch.t(f)))


def sp(f_s, f_t):
    """Similarity preserving."""
    difference = gram(f_t) - gram(f_s)
    return (difference * difference).view(-1, 1).sum(0).sum() / f_s.shape[0] ** 2


def pairwise_distance(e, eps=1e-12):
    """Euclidean distances from the Gram matrix, diagonal 0."""
    square = e.pow(2).sum(dim=1)
    product = e @ e.t()
    result = (square.unsqueeze(1) + square.unsqueeze(0) - 2 * product).clamp(min=eps).sqrt()
    result = result.clone()
    result[range(len(e)), range(len(e))] = 0
    return result


def relative_distance(e):
    """Distances over the mean of the positive ones."""
    d = pairwise_distance(e)
    return d / d[d > 0].mean()


def angles(e):
    """Cosines at every sample between every two others."""
    directions = F.normalize(e.unsqueeze(0) - e.unsqueeze(1), p=2, dim=2)
    return torch.bmm(directions, directions.transpose(1, 2)).view(-1)


def rkd(e_s, e_t, distance_weight=25.0, angle_weight=50.0):
    """Relational distillation: distances and angles."""
    with torch.no_grad():
        d_t, angle_t = relative_distance(e_t), angles(e_t)
    loss_d = F.smooth_l1_loss(relative_distance(e_s), d_t)
    loss_a = F.smooth_l1_loss(angles(e_s), angle_t)
    return distance_weight * loss_d + angle_weight * loss_a


def neighbours(e, eps):
    """Cosine similarities in [0, 1], each row summing to 1."""
    e = e / (torch.sqrt(torch.sum(e**2, dim=1, keepdim=True)) + eps)
    e[e != e] = 0
    similarity = (torch.mm(e, e.transpose(0, 1)) + 1.0) / 2.0
    return similarity / torch.sum(similarity, dim=1, keepdim=True)


def pkt(e_s, e_t, eps=1e-7):
    """Probabilistic knowledge transfer."""
    p_s, p_t = neighbours(e_s, eps), neighbours(e_t, eps)
    return torch.mean(p_t * torch.log((p_t + eps) / (p_s + eps)))


def cc(e_s, e_t):
    """Correlation congruence as RepDistiller ships it."""
    delta = torch.abs(e_s - e_t)
    return torch.mean((delta[:-1] * delta[1:]).sum(1))


class ConvReg(nn.Module):
    """FitNet's regressor from the student's map to the teacher's."""

    def __init__(self, shape_s, shape_t):
        super().__init__()
        (_, c_s, h_s, w_s), (_, c_t, h_t, w_t) = shape_s, shape_t
        if h_s == 2 * h_t:
            self.conv = nn.Conv2d(c_s, c_t, 3, stride=2, padding=1)
        elif h_s * 2 == h_t:
            self.conv = nn.ConvTranspose2d(c_s, c_t, 4, stride=2, padding=1)
        else:
            self.conv = nn.Conv2d(c_s, c_t, (1 + h_s - h_t, 1 + w_s - w_t))
        self.bn = nn.BatchNorm2d(c_t)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        """ReLU(batch norm(convolution))."""
        return self.relu(self.bn(self.conv(x)))


class Vid(nn.Module):
    """Variational information distillation of one stage."""

    def __init__(self, inputs, middle, outputs, variance=5.0, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.regressor = nn.Sequential(
            nn.Conv2d(inputs, middle, 1, bias=False), nn.ReLU(),
            nn.Conv2d(middle, middle, 1, bias=False), nn.ReLU(),
            nn.Conv2d(middle, outputs, 1, bias=False),
        )
        self.log_scale = nn.Parameter(torch.full((outputs,), math.log(math.exp(variance - eps) - 1)))

    def forward(self, f_s, f_t):
        """Gaussian negative log-likelihood of the teacher's map."""
        f_s, f_t = pool_match(f_s, f_t)
        mean = self.regressor(f_s)
        variance = (torch.log(1.0 + torch.exp(self.log_scale)) + self.eps).view(1, -1, 1, 1)
        return torch.mean(0.5 * ((mean - f_t) ** 2 / variance + torch.log(variance)))


def activation_boundaries(f_s, f_t, margin=1.0):
    """Activation boundaries of all stages, the published weights included."""
    loss = 0.0
    for above, (s, t) in enumerate(zip(reversed(f_s), reversed(f_t))):
        element = (s + margin) ** 2 * ((s > -margin) & (t <= 0)).float()
        element = element + (s - margin) ** 2 * ((s <= margin) & (t > 0)).float()
        loss = loss + torch.abs(element).sum() / 2**above
    return loss / f_s[0].shape[0] / 1000 * 3


def flow(bottom, top):
    """Inner products of the channels of consecutive maps, by a broadcast product."""
    if bottom.shape[2] > top.shape[2]:
        bottom = F.adaptive_avg_pool2d(bottom, top.shape[2:])
    elif bottom.shape[2] < top.shape[2]:
        top = F.adaptive_avg_pool2d(top, bottom.shape[2:])
    return (bottom.flatten(2).unsqueeze(1) * top.flatten(2).unsqueeze(2)).mean(-1)


def fsp(f_s, f_t):
    """Flow of the solution procedure over all consecutive maps."""
    pairs = zip(f_s[:-1], f_s[1:], f_t[:-1], f_t[1:])
    return sum((flow(a, b) - flow(c, d)).pow(2).mean() for a, b, c, d in pairs)


def encoder(inputs, middle, norm):
    """Three convolutions of the paraphraser (without batch norm) or the translator (with it)."""
    layers = []
    for a, b in ((inputs, inputs), (inputs, middle), (middle, middle)):
        layers.append(nn.Conv2d(a, b, 3, padding=1))
        layers += [nn.BatchNorm2d(b)] if norm else []
        layers.append(nn.LeakyReLU(0.1, inplace=True))
    return nn.Sequential(*layers)


class FactorTransfer(nn.Module):
    """A frozen paraphraser's encoder and a trained translator."""

    def __init__(self, inputs, outputs, rate=0.5):
        super().__init__()
        self.paraphraser = encoder(outputs, int(outputs * rate), norm=False).requires_grad_(False)
        self.translator = encoder(inputs, int(outputs * rate), norm=True)

    def forward(self, f_s, f_t):
        """Mean distance of the attention maps of both factors."""
        f_s, f_t = pool_match(self.translator(f_s), self.paraphraser(f_t))
        return (attention(f_s) - attention(f_t)).abs().mean()


def svd(f, count):
    """Leading singular values and right singular vectors of [C * H, W]."""
    _, s, v = torch.svd(f.reshape(f.shape[0], -1, f.shape[3]))
    return F.normalize(s[:, :count], dim=1), F.normalize(v[:, :, :count], dim=1)


def affinity(v, below):
    """Radial basis functions of all pairs of entries of two stages."""
    return torch.exp(-(v.unsqueeze(2) - below.unsqueeze(1)).pow(2) / 8)


def kdsvd(f_s, f_t, k=1):
    """Affinities between the singular vectors of consecutive stages, mdistiller's matrices."""
    loss, below = 0.0, None
    for s, t in zip(f_s, f_t):
        (scale, v_t), (_, v_s) = svd(t, k), svd(s, k + 3)
        cosine = torch.matmul(v_s.transpose(-2, -1), v_t)
        most = torch.max(torch.abs(cosine), 1, keepdim=True)[0] == torch.abs(cosine)
        v_s = torch.matmul(v_s, torch.where(most, torch.sign(cosine), torch.zeros_like(cosine)))
        v_s, v_t = v_s * scale.unsqueeze(1), v_t * scale.unsqueeze(1)
        if below is not None:
            difference = (affinity(v_s, below[0]) - affinity(v_t, below[1]).detach()).pow(2)
            loss = loss + difference.sum() / s.shape[0]
        below = v_s, v_t
    return loss


class Ofd(nn.Module):
    """Overhaul of feature distillation: margins, connectors, partial L2."""

    def __init__(self, channels_s, channels_t):
        super().__init__()
        connectors = [
            nn.Sequential(nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b)) for a, b in zip(channels_s, channels_t)
        ]
        self.connectors = nn.ModuleList(connectors)
        for i, channels in enumerate(channels_t):
            self.register_buffer(f"margin{i}", -torch.rand(channels).view(1, -1, 1, 1))

    def forward(self, f_s, f_t):
        """Sum of all stages, half as much for each one further from the end."""
        loss = 0.0
        for i, (connector, s, t) in enumerate(zip(self.connectors, f_s, f_t)):
            s, t = connector(s), F.adaptive_avg_pool2d(t, s.shape[2:]).detach()
            target = torch.max(t, getattr(self, f"margin{i}"))
            element = F.mse_loss(s, target, reduction="none")
            element = element * ((s > target) | (t > 0)).float()
            loss = loss + element.sum(dim=(1, 2, 3)).mean() / 2 ** (len(f_s) - i - 1)
        return loss


def hcl(f_s, f_t):
    """Hierarchical context loss of one pair of maps."""
    loss, weight, total = F.mse_loss(f_s, f_t), 1.0, 1.0
    for level in (4, 2, 1):
        if level >= f_s.shape[2]:
            continue
        weight /= 2.0
        pooled = [F.adaptive_avg_pool2d(f, (level, level)) for f in (f_s, f_t)]
        loss, total = loss + F.mse_loss(*pooled) * weight, total + weight
    return loss / total


class Fusion(nn.Module):
    """Attention-based fusion of knowledge review."""

    def __init__(self, inputs, middle, outputs, fuse):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.conv2 = nn.Sequential(nn.Conv2d(middle, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.attention = nn.Sequential(nn.Conv2d(middle * 2, 2, 1), nn.Sigmoid()) if fuse else None

    def forward(self, x, deeper, size, out_size):
        """The result and what is handed on."""
        x = self.conv1(x)
        if self.attention is not None:
            deeper = F.interpolate(deeper, size, mode="nearest")
            gates = self.attention(torch.cat([x, deeper], dim=1))
            x = x * gates[:, :1] + deeper * gates[:, 1:]
        if x.shape[-1] != out_size:
            x = F.interpolate(x, out_size, mode="nearest")
        return self.conv2(x), x


class ReviewKd(nn.Module):
    """Knowledge review: entries from shallow to deep, the last one pooled."""

    def __init__(self, channels_s, channels_t, sizes):
        super().__init__()
        middle, last = min(512, channels_s[-1]), len(channels_s) - 1
        fusions = [Fusion(a, middle, b, i < last) for i, (a, b) in enumerate(zip(channels_s, channels_t))]
        self.fusions, self.sizes = nn.ModuleList(fusions), sizes

    def forward(self, f_s, f_t):
        """Sum over all entries."""
        loss, deeper = 0.0, None
        for fusion, s, t, size in reversed(list(zip(self.fusions, f_s, f_t, self.sizes))):
            out, deeper = fusion(s, deeper, size, size)
            loss = loss + hcl(out, t)
        return loss


class Embed(nn.Module):
    """CRD's head: linear, then unit length."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x):
        """Rows of unit length."""
        x = self.linear(x.view(x.shape[0], -1))
        return x.div(x.pow(2).sum(1, keepdim=True).pow(0.5))


class AliasMethod:
    """Draws from a discrete distribution in constant time each."""

    def __init__(self, weights):
        count = len(weights)
        prob = (weights * count / weights.sum()).tolist()
        alias = [0] * count
        smaller = [i for i, p in enumerate(prob) if p < 1.0]
        larger = [i for i, p in enumerate(prob) if p >= 1.0]
        while smaller and larger:
            small, large = smaller.pop(), larger.pop()
            alias[small] = large
            prob[large] = (prob[large] - 1.0) + prob[small]
            (smaller if prob[large] < 1.0 else larger).append(large)
        for rest in smaller + larger:
            prob[rest] = 1.0
        self.prob, self.alias = torch.tensor(prob), torch.tensor(alias)

    def draw(self, count):
        """`count` indices."""
        column = torch.zeros(count, dtype=torch.long).random_(0, self.alias.size(0))
        prob = self.prob.index_select(0, column)
        alias = self.alias.index_select(0, column)
        keep = torch.bernoulli(prob)
        return column.mul(keep.long()) + alias.mul((1 - keep).long())


class ContrastMemory(nn.Module):
    """Both memory banks, the scores against them and their update."""

    def __init__(self, dim, rows, negatives, temperature=0.07, momentum=0.5):
        super().__init__()
        self.negatives, self.temperature, self.momentum = negatives, temperature, momentum
        self.multinomial = AliasMethod(torch.ones(rows))
        self.z = {}
        bound = 1.0 / math.sqrt(dim / 3)
        self.register_buffer("memory_v1", torch.rand(rows, dim).mul_(2 * bound).add_(-bound))
        self.register_buffer("memory_v2", torch.rand(rows, dim).mul_(2 * bound).add_(-bound))

    def sample(self, positive):
        """[B, K+1] rows of the banks, the positive one in column 0."""
        batch = positive.size(0)
        index = self.multinomial.draw(batch * (self.negatives + 1)).view(batch, -1)
        index.select(1, 0).copy_(positive)
        return index

    def scores(self, name, memory, v, index):
        """exp(<memory row, v> / T) / Z, where Z stems from the first batch."""
        batch, dim = v.shape
        weight = torch.index_select(memory, 0, index.view(-1)).detach()
        weight = weight.view(batch, index.size(1), dim)
        out = torch.exp(torch.div(torch.bmm(weight, v.view(batch, dim, 1)), self.temperature))
        if name not in self.z:
            self.z[name] = (out.mean() * memory.size(0)).item()
        return torch.div(out, self.z[name]).contiguous()

    @torch.no_grad()
    def update(self, memory, v, positive):
        """Moves the samples' own rows towards their embeddings."""
        rows = torch.index_select(memory, 0, positive.view(-1))
        rows.mul_(self.momentum).add_(torch.mul(v, 1 - self.momentum))
        norm = rows.pow(2).sum(1, keepdim=True).pow(0.5)
        memory.index_copy_(0, positive, rows.div(norm))

    def forward(self, v1, v2, positive, index):
        """Scores of the student's and the teacher's embeddings."""
        out_v2 = self.scores("v2", self.memory_v1, v2, index)
        out_v1 = self.scores("v1", self.memory_v2, v1, index)
        self.update(self.memory_v1, v1, positive)
        self.update(self.memory_v2, v2, positive)
        return out_v1, out_v2


def contrast(x, rows, eps=1e-7):
    """Noise-contrastive loss of scores [B, K+1, 1]."""
    batch, negatives = x.shape[0], x.size(1) - 1
    noise = negatives / float(rows)
    positive, rest = x.select(1, 0), x.narrow(1, 1, negatives)
    log_d1 = torch.div(positive, positive.add(noise + eps)).log_()
    log_d0 = torch.div(rest.clone().fill_(noise), rest.add(noise + eps)).log_()
    return -(log_d1.sum(0) + log_d0.view(-1, 1).sum(0)).sum() / batch


class Crd(nn.Module):
    """Contrastive representation distillation with its two heads and banks."""

    def __init__(self, dim_s, dim_t, dim=128, rows=50000, negatives=16384):
        super().__init__()
        self.embed_s = Embed(dim_s, dim)
        self.embed_t = Embed(dim_t, dim)
        self.contrast = ContrastMemory(dim, rows, negatives)
        self.rows = rows

    def forward(self, f_s, f_t, positive, index):
        """Sum of the student's and the teacher's contrastive loss."""
        out_s, out_t = self.contrast(self.embed_s(f_s), self.embed_t(f_t), positive, index)
        return contrast(out_s, self.rows) + contrast(out_t, self.rows)

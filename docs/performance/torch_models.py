"""The CIFAR networks of RepDistiller in plain PyTorch, with its parameter names."""

import torch.nn.functional as F
from torch import cat, nn


def conv3x3(inputs, outputs, stride=1, groups=1):
    """3x3 convolution with padding 1 and no bias."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(inputs, outputs, stride=1, groups=1):
    """1x1 convolution with no bias."""
    return nn.Conv2d(inputs, outputs, 1, stride, groups=groups, bias=False)


def init_fan_out(model):
    """RepDistiller's initial values: fan-out normal convolutions without bias terms."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def pool(x):
    """Global average pooling to a flat vector."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


class Net(nn.Module):
    """A network that returns its logits, or with `features` also [f0, stages, pooled]."""

    def forward(self, x, features=False):
        """Logits, or (features, logits)."""
        feats = self.features(x)
        logits = self.head(feats[-1])
        return (feats, logits) if features else logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, post-activation."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        """ReLU(branch + shortcut)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(Net):
    """CIFAR ResNet of depth 6n+2."""

    def __init__(self, depth, channels, classes):
        super().__init__()
        blocks = (depth - 2) // 6
        stem, *widths = channels
        self.conv1 = conv3x3(3, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self.stage(stem, widths[0], blocks, 1)
        self.layer2 = self.stage(widths[0], widths[1], blocks, 2)
        self.layer3 = self.stage(widths[1], widths[2], blocks, 2)
        self.fc = nn.Linear(widths[2], classes)
        init_fan_out(self)

    @staticmethod
    def stage(inputs, outputs, blocks, stride):
        """Blocks of one width, the stride in the first."""
        rest = [BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
        return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)

    def features(self, x):
        """[f0, three stages, pooled]."""
        f0 = self.relu(self.bn1(self.conv1(x)))
        f1 = self.layer1(f0)
        f2 = self.layer2(f1)
        f3 = self.layer3(f2)
        return [f0, f1, f2, f3, pool(f3)]

    def head(self, pooled):
        """The classifier."""
        return self.fc(pooled)


class PreactBlock(nn.Module):
    """Wide-ResNet block: batch norm and ReLU in front of each convolution."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.convShortcut = None if inputs == outputs else conv1x1(inputs, outputs, stride)

    def forward(self, x):
        """Branch plus the raw input, or plus a projection of the activated one."""
        activated = self.relu(self.bn1(x))
        out = self.conv2(self.relu(self.bn2(self.conv1(activated))))
        return out + (x if self.convShortcut is None else self.convShortcut(activated))


class Group(nn.Module):
    """Blocks of one width, under the name `layer`."""

    def __init__(self, inputs, outputs, blocks, stride):
        super().__init__()
        rest = [PreactBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(PreactBlock(inputs, outputs, stride), *rest)

    def forward(self, x):
        """All blocks in order."""
        return self.layer(x)


class WideResNet(Net):
    """WRN-d-w with d = 6n+4."""

    def __init__(self, depth, widen, classes):
        super().__init__()
        blocks = (depth - 4) // 6
        widths = [16 * widen, 32 * widen, 64 * widen]
        self.conv1 = conv3x3(3, 16)
        self.block1 = Group(16, widths[0], blocks, 1)
        self.block2 = Group(widths[0], widths[1], blocks, 2)
        self.block3 = Group(widths[1], widths[2], blocks, 2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(widths[2], classes)
        init_fan_out(self)
        nn.init.zeros_(self.fc.bias)

    def features(self, x):
        """[f0, three raw sums, pooled]."""
        f0 = self.conv1(x)
        f1 = self.block1(f0)
        f2 = self.block2(f1)
        f3 = self.block3(f2)
        return [f0, f1, f2, f3, pool(self.relu(self.bn1(f3)))]

    def head(self, pooled):
        """The classifier."""
        return self.fc(pooled)


VGG_BLOCKS = {
    8: [1, 1, 1, 1, 1],
    11: [1, 1, 2, 2, 2],
    13: [2, 2, 2, 2, 2],
    16: [2, 2, 3, 3, 3],
    19: [2, 2, 4, 4, 4],
}


class Vgg(Net):
    """VGG with batch norm; the last ReLU of a block is applied outside of it."""

    def __init__(self, depth, classes):
        super().__init__()
        inputs = 3
        for index, (convs, width) in enumerate(zip(VGG_BLOCKS[depth], [64, 128, 256, 512, 512])):
            setattr(self, f"block{index}", self.block(inputs, width, convs))
            inputs = width
        self.classifier = nn.Linear(512, classes)
        init_fan_out(self)
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    @staticmethod
    def block(inputs, width, convs):
        """[convolution, batch norm, ReLU] repeated, without the last ReLU."""
        layers = []
        for _ in range(convs):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width)]
            layers.append(nn.ReLU(inplace=True))
            inputs = width
        return nn.Sequential(*layers[:-1])

    def features(self, x):
        """[five blocks, pooled]."""
        tall, maps = x.shape[2] == 64, []
        for index in range(5):
            x = F.relu(getattr(self, f"block{index}")(x), inplace=True)
            maps.append(x)
            if index < 3 or (index == 3 and tall):
                x = F.max_pool2d(x, 2)
        return [*maps, pool(x)]

    def head(self, pooled):
        """The classifier."""
        return self.classifier(pooled)


def conv_bn_relu(conv, outputs):
    """A convolution, its batch norm and ReLU, as a list."""
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear bottleneck."""

    def __init__(self, inputs, outputs, stride, expand):
        super().__init__()
        hidden = inputs * expand
        self.add = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *conv_bn_relu(conv1x1(inputs, hidden), hidden),
            *conv_bn_relu(conv3x3(hidden, hidden, stride, groups=hidden), hidden),
            conv1x1(hidden, outputs),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x):
        """Branch, plus the input where shapes agree."""
        return x + self.conv(x) if self.add else self.conv(x)


MOBILE_GROUPS = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2),
                 (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


class MobileNetV2(Net):
    """RepDistiller's `mobile_half`: width 0.5, expansion 6, stem stride 2."""

    def __init__(self, classes, width=0.5):
        super().__init__()
        inputs = int(32 * width)
        self.conv1 = nn.Sequential(*conv_bn_relu(conv3x3(3, inputs, 2), inputs))
        groups = []
        for expand, channels, blocks, stride in MOBILE_GROUPS:
            outputs = int(channels * width)
            first = InvertedResidual(inputs, outputs, stride, expand)
            rest = [InvertedResidual(outputs, outputs, 1, expand) for _ in range(blocks - 1)]
            groups.append(nn.Sequential(first, *rest))
            inputs = outputs
        self.blocks = nn.ModuleList(groups)
        self.conv2 = nn.Sequential(*conv_bn_relu(conv1x1(inputs, 1280), 1280))
        self.classifier = nn.Sequential(nn.Linear(1280, classes))
        init_fan_out(self)
        nn.init.normal_(self.classifier[0].weight, 0, 0.01)
        nn.init.zeros_(self.classifier[0].bias)

    def features(self, x):
        """[f0, outputs of groups 1, 2, 4, 6, pooled]."""
        x = self.conv1(x)
        maps = [x]
        for index, group in enumerate(self.blocks):
            x = group(x)
            if index in (1, 2, 4, 6):
                maps.append(x)
        return [*maps, pool(self.conv2(x))]

    def head(self, pooled):
        """The classifier."""
        return self.classifier(pooled)


def shuffle(x, groups):
    """Channel shuffle: [N, g, C/g, H, W] with the axes g and C/g swapped."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleV1Block(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1."""

    def __init__(self, inputs, outputs, stride, groups):
        super().__init__()
        middle = outputs // 4
        self.stride = stride
        self.groups = 1 if inputs == 24 else groups
        self.conv1 = conv1x1(inputs, middle, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = conv3x3(middle, middle, stride, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = conv1x1(middle, outputs, groups=groups)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        """Branch plus input, or beside the pooled input where the stride is 2."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(shuffle(out, self.groups))), inplace=True)
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            out = cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], 1)
        else:
            out = out + x
        return F.relu(out, inplace=True)


class ShuffleNetV1(Net):
    """ShuffleNet with 3 groups."""

    def __init__(self, classes, groups=3):
        super().__init__()
        self.conv1 = conv1x1(3, 24)
        self.bn1 = nn.BatchNorm2d(24)
        inputs = 24
        for index, (width, blocks) in enumerate([(240, 4), (480, 8), (960, 4)], 1):
            first = ShuffleV1Block(inputs, width - inputs, 2, groups)
            rest = [ShuffleV1Block(width, width, 1, groups) for _ in range(blocks - 1)]
            setattr(self, f"layer{index}", nn.Sequential(first, *rest))
            inputs = width
        self.linear = nn.Linear(960, classes)

    def features(self, x):
        """[f0, three stages, pooled]."""
        f0 = F.relu(self.bn1(self.conv1(x)), inplace=True)
        f1 = self.layer1(f0)
        f2 = self.layer2(f1)
        f3 = self.layer3(f2)
        return [f0, f1, f2, f3, pool(f3)]

    def head(self, pooled):
        """The classifier."""
        return self.linear(pooled)


class ShuffleV2Block(nn.Module):
    """One half passes by, the other goes through 1x1, depthwise 3x3, 1x1."""

    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.half = half
        self.conv1, self.bn1 = conv1x1(half, half), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = conv3x3(half, half, groups=half), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = conv1x1(half, half), nn.BatchNorm2d(half)

    def forward(self, x):
        """Shuffled concatenation of both halves."""
        left, right = x[:, : self.half], x[:, self.half :]
        right = F.relu(self.bn1(self.conv1(right)), inplace=True)
        right = self.bn2(self.conv2(right))
        right = F.relu(self.bn3(self.conv3(right)), inplace=True)
        return shuffle(cat([left, right], 1), 2)


class ShuffleV2Down(nn.Module):
    """Both branches see the whole input and halve its size."""

    def __init__(self, inputs, outputs):
        super().__init__()
        half = outputs // 2
        self.conv1, self.bn1 = conv3x3(inputs, inputs, 2, groups=inputs), nn.BatchNorm2d(inputs)
        self.conv2, self.bn2 = conv1x1(inputs, half), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = conv1x1(inputs, half), nn.BatchNorm2d(half)
        self.conv4, self.bn4 = conv3x3(half, half, 2, groups=half), nn.BatchNorm2d(half)
        self.conv5, self.bn5 = conv1x1(half, half), nn.BatchNorm2d(half)

    def forward(self, x):
        """Shuffled concatenation of both branches."""
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)), inplace=True)
        return shuffle(cat([left, right], 1), 2)


class ShuffleNetV2(Net):
    """ShuffleNetV2 of net size 1."""

    def __init__(self, classes):
        super().__init__()
        self.conv1 = conv1x1(3, 24)
        self.bn1 = nn.BatchNorm2d(24)
        inputs = 24
        for index, (width, blocks) in enumerate([(116, 3), (232, 7), (464, 3)], 1):
            basic = [ShuffleV2Block(width) for _ in range(blocks)]
            setattr(self, f"layer{index}", nn.Sequential(ShuffleV2Down(inputs, width), *basic))
            inputs = width
        self.conv2 = conv1x1(464, 1024)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, classes)

    def features(self, x):
        """[f0, three stages, pooled]."""
        f0 = F.relu(self.bn1(self.conv1(x)), inplace=True)
        f1 = self.layer1(f0)
        f2 = self.layer2(f1)
        f3 = self.layer3(f2)
        return [f0, f1, f2, f3, pool(F.relu(self.bn2(self.conv2(f3)), inplace=True))]

    def head(self, pooled):
        """The classifier."""
        return self.linear(pooled)


def registry():
    """Every name with a function from the number of classes to the network."""
    models = {}
    for depth in (8, 14, 20, 32, 44, 56, 110):
        models[f"resnet{depth}"] = lambda k, d=depth: ResNet(d, [16, 16, 32, 64], k)
    for depth in (8, 32):
        models[f"resnet{depth}x4"] = lambda k, d=depth: ResNet(d, [32, 64, 128, 256], k)
    for depth, widen in ((16, 1), (16, 2), (28, 2), (28, 4), (40, 1), (40, 2)):
        models[f"wrn_{depth}_{widen}"] = lambda k, d=depth, w=widen: WideResNet(d, w, k)
    for depth in VGG_BLOCKS:
        models[f"vgg{depth}"] = lambda k, d=depth: Vgg(d, k)
    return models | {"MobileNetV2": MobileNetV2, "ShuffleV1": ShuffleNetV1, "ShuffleV2": ShuffleNetV2}


MODELS = registry()

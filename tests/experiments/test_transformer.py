"""The transformer looks back and never ahead, and is the same scored and trained."""

import pytest
import torch

from lightning_is.experiments.transformer import Block, Transformer

VOCABULARY, LENGTH = 11, 9


@pytest.fixture
def net():
    return Transformer(VOCABULARY, LENGTH, width=16, depth=2, heads=4)


@pytest.fixture
def x():
    return torch.randint(VOCABULARY, (3, LENGTH))


def test_a_token_changes_what_is_predicted_from_there_on_and_nothing_before(net, x):
    before = net(x)
    for place in range(LENGTH):
        changed = x.clone()
        changed[:, place] = (x[:, place] + 1) % VOCABULARY
        after = net(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        moved = (after[:, place:] - before[:, place:]).abs().amax(2)
        assert (moved > 0).all()


def test_a_shorter_sequence_is_the_beginning_of_a_longer_one(net, x):
    assert net(x).shape == (3, LENGTH, VOCABULARY)
    torch.testing.assert_close(net(x[:, :4]), net(x)[:, :4])


def test_the_order_of_earlier_tokens_matters():
    net = Transformer(VOCABULARY, LENGTH, width=16, depth=1, heads=2)
    x = torch.tensor([[1, 2, 3], [2, 1, 3]])
    one, other = net(x)[:, -1]
    assert (one - other).abs().max() > 1e-6


def test_attention_is_that_of_each_head_over_what_came_before():
    block, x = Block(width=6, heads=2, dropout=0.0), torch.randn(2, 5, 6)
    query, key, value = block.into(x).chunk(3, dim=2)
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        fits = query[..., part] @ key[..., part].transpose(1, 2) / 3**0.5
        ahead = torch.ones(5, 5).triu(1).bool()
        shares = fits.masked_fill(ahead, -torch.inf).softmax(2)
        heads.append(shares @ value[..., part])
    torch.testing.assert_close(block._attend(x), block.out(torch.cat(heads, 2)))


def test_a_block_adds_to_its_normalised_inputs():
    block, x = Block(width=6, heads=2, dropout=0.0), torch.randn(2, 5, 6)
    attended = x + block._attend(block.norm1(x))
    torch.testing.assert_close(
        block(x), attended + block.perceptron(block.norm2(attended))
    )


def test_it_scores_by_what_it_trains_with(net, x):
    trained = net.train()(x)
    with torch.no_grad():
        assert torch.equal(net.eval()(x), trained)


def test_dropout_is_on_in_training_alone(x):
    net = Transformer(VOCABULARY, LENGTH, width=16, depth=1, heads=2, dropout=0.5)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="3 heads for a width of 16"):
        Transformer(VOCABULARY, LENGTH, width=16, heads=3)

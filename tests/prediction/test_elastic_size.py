"""Pruning takes dead neurons and nothing else: not what the others compute, not what the optimizer knows of them."""

from __future__ import annotations

import torch
from torch import Tensor

from jenga_core.prediction.elastic_size import ElasticSize
from jenga_core.prediction.predictor import TokenNetwork

DEAD_FIRST, DEAD_SECOND = (2, 5), (0,)


def trained_network() -> tuple[TokenNetwork, torch.optim.Optimizer, Tensor]:
    """Positive inputs; three neurons are made dead by negative weights after a few real steps."""
    torch.manual_seed(0)
    network = TokenNetwork(6, (8, 8), 4)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    x_PE = torch.rand(50, 6)
    for _ in range(3):
        optimizer.zero_grad()
        network(x_PE).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        network.first.weight.copy_(network.first.weight.abs())
        network.second.weight.copy_(network.second.weight.abs())
        network.first.weight[list(DEAD_FIRST)] = -1.0
        network.second.weight[list(DEAD_SECOND)] = -1.0
    return network, optimizer, x_PE


def moments(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in optimizer.state[weight].items()}


def test_dead_neurons_go_and_the_function_stays() -> None:
    network, optimizer, x_PE = trained_network()
    elastic = ElasticSize(network, optimizer)
    before = network(x_PE)
    first, second = elastic.zero_fractions()
    assert [index for index, share in enumerate(first.tolist()) if share == 1.0] == list(DEAD_FIRST)
    assert [index for index, share in enumerate(second.tolist()) if share == 1.0] == list(DEAD_SECOND)
    assert elastic.prune() == 3
    assert network.hidden == (6, 7)
    assert (network.second.in_features, network.third.in_features) == (6, 7)
    torch.testing.assert_close(network(x_PE), before)
    assert elastic.prune() == 0


def test_the_optimizer_keeps_the_moments_of_those_that_stay_bit_for_bit() -> None:
    network, optimizer, x_PE = trained_network()
    weights = (network.first.weight, network.second.weight, network.third.weight)
    old_first, old_second, old_third = (moments(optimizer, weight) for weight in weights)
    stay_first = [index for index in range(8) if index not in DEAD_FIRST]
    stay_second = [index for index in range(8) if index not in DEAD_SECOND]
    elastic = ElasticSize(network, optimizer)
    network(x_PE)
    elastic.prune()

    new_first, new_second, new_third = (
        optimizer.state[linear.weight] for linear in (network.first, network.second, network.third)
    )
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(new_first[name], old_first[name][stay_first])
        assert torch.equal(new_second[name], old_second[name][stay_second][:, stay_first])
        assert torch.equal(new_third[name], old_third[name][:, stay_second])
    assert new_first["step"] == old_first["step"]
    assert len(optimizer.state) == 3
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in network.parameters()}


def test_training_goes_on_with_the_new_shapes() -> None:
    network, optimizer, x_PE = trained_network()
    elastic = ElasticSize(network, optimizer)
    network(x_PE)
    elastic.prune()
    before = [parameter.clone() for parameter in network.parameters()]
    optimizer.zero_grad()
    network(x_PE).square().sum().backward()
    optimizer.step()
    assert all((new != old).any() for new, old in zip(network.parameters(), before, strict=True))


def test_only_the_deadest_share_goes_at_once_and_one_neuron_always_stays() -> None:
    network, optimizer, x_PE = trained_network()
    with torch.no_grad():
        network.first.weight.fill_(-1.0)
    elastic = ElasticSize(network, optimizer, most_at_once_fraction=0.5)
    network(x_PE)
    elastic.prune()
    assert network.hidden[0] == 4
    elastic.most_at_once_fraction = 1.0
    network(x_PE)
    elastic.prune()
    assert network.hidden == (1, 1)


def test_nothing_is_counted_in_eval_mode_or_after_close() -> None:
    network, optimizer, x_PE = trained_network()
    elastic = ElasticSize(network, optimizer)
    network.eval()(x_PE)
    elastic.close()
    network.train()(x_PE)
    assert elastic.prune() == 0

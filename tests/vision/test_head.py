"""The head on frozen features: its optimum, its regularisation, its scale."""

import numpy as np

from roclab.vision.train import head as head_module
from roclab.vision.train.head import Space, choose_head, fit_head, further_cuts, standardisation


def test_folded_head_is_scikit_learns_regression():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 200)
    x = (rng.normal(size=(4, 30))[y] + rng.normal(size=(200, 30))) * np.linspace(1, 3, 30) + 5
    z = StandardScaler().fit_transform(x)
    head = fit_head(x, y, 4, c=0.05, space=Space(x.mean(0), x.std(0), z, None))
    peer = LogisticRegression(C=0.05, max_iter=5000, tol=1e-10).fit(z, y)
    assert np.allclose(head.probs(x), peer.predict_proba(z), atol=1e-4)


def test_a_head_on_probabilities_is_a_regression_on_every_class_of_an_image_with_its_weight():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(2)
    x, targets = rng.normal(size=(60, 8)), rng.dirichlet(np.ones(3), 60)
    head = fit_head(x, targets, 3, c=0.3, space=Space(np.zeros(8), np.ones(8), x, None))
    peer = LogisticRegression(C=0.3, max_iter=5000, tol=1e-10)
    peer.fit(np.repeat(x, 3, axis=0), np.tile(np.arange(3), 60), sample_weight=targets.ravel())
    assert np.allclose(head.probs(x), peer.predict_proba(x), atol=1e-4)


def test_fewer_images_than_features_have_the_same_optimum():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 40)
    x = (rng.normal(size=(3, 90))[y] + rng.normal(size=(40, 90))).astype(np.float32)
    turned = fit_head(x, y, 3, c=0.02)
    mean, scale = standardisation(x)
    plain = Space(mean, scale, (x - mean) / scale, None)
    assert Space.of(x).z.shape == (40, 40)
    straight = fit_head(x, y, 3, c=0.02, space=plain)
    assert np.allclose(turned.weight, straight.weight, atol=1e-4)
    assert np.allclose(turned.bias, straight.bias, atol=1e-4)


def cut_of(n, apart, noise=1.0, seed=0):
    """Two classes whose features stand `apart`; of the validation images' labels a share of `noise` is drawn anew."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 2 * n)
    x = rng.normal(size=(2 * n, 6)) + apart * y[:, None]
    y[:n] = np.where(rng.random(n) < noise, rng.integers(0, 2, n), y[:n])
    return x[n:], y[n:], x[:n], y[:n]


def test_a_c_at_the_end_of_the_grid_widens_it(caplog):
    usual = choose_head(cut_of(60, 1.0, noise=0.4), 2)
    assert (usual.tried[0]["c"], caplog.text) == (1e-5, "")
    assert 1e-5 < usual.c < usual.tried[-1]["c"] <= 10

    separable = choose_head(cut_of(60, 8.0, noise=0.0), 2)  # the surer the better
    assert separable.c > 10
    assert separable.tried[-1]["c"] == 1e4
    assert "the last that is tried: the best may lie beyond it" in caplog.text
    caplog.clear()
    misled = choose_head(cut_of(60, 1.0, noise=2.0, seed=2), 2)  # labels that have nothing to do with the images
    assert misled.c < 1e-5
    assert misled.tried[0]["c"] >= 1e-8
    cs = [row["c"] for row in misled.tried]
    assert cs == sorted(set(cs))


def test_a_solver_that_does_not_converge_is_warned_of(monkeypatch, caplog):
    x, y, *_ = cut_of(60, 1.0)
    assert not fit_head(x, y, 2, 1.0).history
    assert caplog.text == ""
    monkeypatch.setattr(head_module, "ITERATIONS", 3)
    fit_head(x, y, 2, 1.0)
    assert "solver did not converge in 3 iterations at C = 1: " in caplog.text


def test_further_cuts_let_each_image_validate_once():
    x, y = np.arange(23.0)[:, None], np.arange(23) % 3
    cuts = further_cuts([x, -x], y, seed=1)
    assert sorted(np.concatenate([cut[2][:, 0] for cut in cuts])) == list(x[:, 0])
    for x_train, y_train, x_val, y_val in cuts:
        assert set(np.abs(x_train[:, 0])) | set(x_val[:, 0]) == set(x[:, 0])
        assert not set(np.abs(x_train[:, 0])) & set(x_val[:, 0])
        assert (y_train == np.abs(x_train[:, 0]).astype(int) % 3).all()
        assert (y_val == x_val[:, 0].astype(int) % 3).all()
    assert further_cuts([x[:6]], y[:6], seed=1) == []


def test_a_dead_unit_does_not_get_a_voice():
    x = np.random.default_rng(0).normal(size=(50, 10))
    x[:, 3] *= 1e-9
    _, scale = standardisation(x)
    assert scale[3] > 0.05

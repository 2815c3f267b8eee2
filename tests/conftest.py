import pytest


def has_gpu():
    try:
        import torch
    except ImportError: return False
    return torch.cuda.is_available() or torch.backends.mps.is_available()

def pytest_collection_modifyitems(items):
    marked = [o for o in items if o.get_closest_marker('gpu')]
    if not marked or has_gpu(): return
    for o in marked: o.add_marker(pytest.mark.skip(reason="no GPU on this machine"))

# Small things that many tests use; they import what they need, so that other tests start without torch

@pytest.fixture(autouse=True)
def no_windows(monkeypatch): monkeypatch.setenv('MPLBACKEND', 'agg')

@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    "60 pictures: circles, squares and triangles; not to be changed"
    from imgcls_nb.data import make_shapes
    return make_shapes(tmp_path_factory.mktemp('data')/'shapes')

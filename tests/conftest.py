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

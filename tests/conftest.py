import os

import pytest

os.environ.setdefault('OMP_NUM_THREADS', '2')

def has_gpu():
    try: import torch
    except ImportError: return False
    return torch.cuda.is_available() or torch.backends.mps.is_available()

def pytest_collection_modifyitems(items):
    marked = [o for o in items if o.get_closest_marker('gpu')]
    if marked and not has_gpu():
        for o in marked: o.add_marker(pytest.mark.skip(reason="no GPU on this machine"))

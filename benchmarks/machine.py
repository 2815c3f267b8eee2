"Where it was measured: the machine in a line, and the versions of what runs on it"
import os
import platform
from importlib.metadata import PackageNotFoundError, version

from imgcls_nb.engines import can_run, cpu_name

PACKAGES = 'imgcls_nb torch torchvision timm fastai onnxruntime openvino simplejpeg pillow numpy scikit-learn'.split()

def units():
    return ' and '.join(o for o in ('bf16', 'int8') if can_run(o))

def machine():
    memory = os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')/2**30 if hasattr(os, 'sysconf') else 0
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    parts = [cpu_name(), f'{cpus} processors', f'{memory:.0f} GB' if memory else '', f'units for {units() or "fp32 only"}']
    return ', '.join(filter(None, parts))

def versions():
    found = dict(Python=platform.python_version())
    for o in PACKAGES:
        try: found[o] = version(o)
        except PackageNotFoundError: pass
    return found

def listed(found): return ', '.join(f'{k} {v}' for k, v in found.items())

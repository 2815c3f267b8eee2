"A function in a process of its own: what it takes or breaks, others do not feel"
import multiprocessing

try:
    import resource
except ImportError: resource = None # Windows

FORKS = 'forkserver' in multiprocessing.get_all_start_methods() # each process begins as a copy of one that has imported all
CONTEXT = multiprocessing.get_context('forkserver' if FORKS else 'spawn')

def preload(*modules):
    "What all the processes need is imported once; before the first `ask`"
    if FORKS: CONTEXT.set_forkserver_preload(list(modules))

def ask(f, *args, seconds, memory=None):
    "What `f` answers, or a text that says why there is no answer; `memory` in GB, beyond which it gets no more"
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=answer, args=(theirs, memory, f, args), daemon=True)
    process.start()
    theirs.close()
    try: return ours.recv() if ours.poll(seconds) else f'no answer within {seconds:g} s'
    except EOFError: return died(process)
    finally:
        process.kill()
        process.join()

def answer(pipe, memory, f, args):
    if memory and resource: resource.setrlimit(resource.RLIMIT_DATA, 2*[int(memory*2**30)])
    pipe.send(f(*args))

def died(process):
    process.join()
    return f'its process ended with status {process.exitcode}'

def most_memory():
    "What this process held at most, in GB; 0 where it cannot be asked"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20 if resource else 0. # of Linux: in KB

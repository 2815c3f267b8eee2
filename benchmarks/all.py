"""Run the benchmarks, and write what they found to RESULTS.md.

    python benchmarks/all.py                       # all of them: some hours
    python benchmarks/all.py --only widgets data   # these again; what is known of the others stays
    python benchmarks/all.py --under 5             # those that take less than five minutes
    python benchmarks/all.py --render              # nothing is run, the page is written again
    python benchmarks/all.py --paddleclas DIR      # with a checkout of PaddleClas, for the jobs that read its files

results.json beside this file keeps the rows of each job with machine, versions and date. RESULTS.md is made of it alone, and
shows what was not measured so far; both are written after each job. A job that fails, or takes six times what it should, keeps
its earlier rows, the others go on, and the exit status is 1; a bar that is missed is a result, and no failure.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from bars import JOBS, read_rows
from machine import listed, machine, versions

HERE = Path(__file__).parent
RESULTS, PAGE = HERE/'results.json', HERE/'RESULTS.md'

# Running

PATIENCE = 6 # times the minutes that bars.py speaks of, for a busy machine

def run_script(command, minutes):
    "Its exit status; one that does not end is ended, with all that it started"
    process = subprocess.Popen(command, start_new_session=True)
    try: return process.wait(60*minutes)
    except subprocess.TimeoutExpired: raise RuntimeError(f'it did not end within {minutes:.3g} minutes') from None
    finally:
        if process.poll() is None: kill_all(process)

def kill_all(process):
    if hasattr(os, 'killpg'): os.killpg(process.pid, signal.SIGKILL) # it leads a session
    else: process.kill()
    process.wait()

def run_job(name, options):
    "What a job found"
    job, began, busy = JOBS[name], time.monotonic(), os.getloadavg()[0] if hasattr(os, 'getloadavg') else 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder)/'rows.json'
        command = [sys.executable, str(HERE/job.script), *job.filled(options), '--bars', str(file)]
        status = run_script(command, PATIENCE*job.minutes)
        if not file.exists(): raise RuntimeError(f'it left no rows; its exit status is {status}')
        rows = [o._asdict() for o in read_rows(file)]
    odd = [o['key'] for o in rows if o['key'] not in job.bars]
    if odd: raise RuntimeError(f'it speaks of {odd[0]!r}, which bars.py lacks')
    return dict(date=date.today().isoformat(), machine=machine(), versions=versions(), load=round(busy, 1),
                minutes=round((time.monotonic() - began)/60, 1), rows=rows)

def why_not(job, options):
    if not (HERE/job.script).exists(): return f'there is no {job.script}'
    try: job.filled(options)
    except KeyError as e: return f"it needs --{e.args[0].replace('_', '-')}"

# The page

def rows_of(results):
    "Every bar in order: job, what, bar, and its row or None"
    for name, job in JOBS.items():
        rows = {o['key']: o for o in results.get(name, {}).get('rows', ())}
        for key, (what, bar) in job.bars.items(): yield name, what, bar, rows.get(key)

VERDICTS = {True: 'yes', False: '**no**', None: ''}

def table(lines): return '\n'.join(f"| {' | '.join(o)} |" for o in [lines[0], ['---']*len(lines[0]), *lines[1:]])

def figure(row): return ('not measured yet' if row is None else f"{row['measured']}, ratio {row['ratio']}" if row['ratio']
                         else row['measured'])

def short_table(results):
    "Every bar, also those that are missed; README shows this table"
    return table([['what', 'bar', 'measured', 'met'],
                  *([what, bar, figure(row), '' if row is None else VERDICTS[row['passed']]]
                    for _, what, bar, row in rows_of(results))])

def section(name, results):
    job, found = JOBS[name], results.get(name)
    yield f'## {name}\n\n`{job.command}`'
    if found:
        yield (f"{found['date']}, {found['minutes']} minutes, load {found['load']} at the start. {found['machine']}. "
               f"{listed(found['versions'])}.")
    else: yield 'Not measured yet.'
    rows = [(what, bar, row) for o, what, bar, row in rows_of(results) if o == name]
    empty = dict(measured='not measured yet', spread='', ratio='', passed=None, note='')
    yield table([['what', 'bar', 'measured', 'spread', 'ratio', 'met', 'how'],
                 *([what, bar, *(r[k] for k in ('measured', 'spread', 'ratio')), VERDICTS[r['passed']], r['note']]
                   for what, bar, row in rows for r in [row or empty])])

def render(results):
    rows = [row for *_, row in rows_of(results)]
    met, missed = (sum(o is not None and o['passed'] is v for o in rows) for v in (True, False))
    intro = (f"Written by `make bench` (`benchmarks/all.py`), not by hand. {len(rows) - rows.count(None)} of "
             f"{len(rows)} figures are measured; {met} bars are met, {missed} are missed. Where a row does not say otherwise, a "
             "ratio is the median of pairs that were taken in turns, and spread is the range of these, or of what was measured. "
             "How each is taken stands at the top of its script.")
    return '\n\n'.join(['# Results', intro, short_table(results), *(o for name in JOBS for o in section(name, results))]) + '\n'

def load(): return json.loads(RESULTS.read_text('utf-8')) if RESULTS.exists() else {}

def save(results):
    ordered = {k: results[k] for k in JOBS if k in results}
    RESULTS.write_text(json.dumps(ordered, indent=1) + '\n', 'utf-8')
    PAGE.write_text(render(ordered), 'utf-8')

# Command line

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', choices=JOBS, metavar='JOB', help=f"some of {', '.join(JOBS)}")
    parser.add_argument('--under', type=float, metavar='MINUTES', help='only jobs that take less than this')
    parser.add_argument('--paddleclas', metavar='DIR', help='a checkout of PaddleClas')
    parser.add_argument('--paddle-python', metavar='FILE', help='the Python that has Paddle, to train with it as well')
    parser.add_argument('--render', action='store_true', help='run nothing, write the page again')
    args = parser.parse_args()
    results, options, said = load(), {k: getattr(args, k) for k in ('paddleclas', 'paddle_python')}, dict(failed=[], skipped=[])
    jobs = [] if args.render else [o for o in args.only or JOBS if args.under is None or JOBS[o].minutes < args.under]
    for name in jobs:
        print(f'\n{name}: {JOBS[name].command}, about {JOBS[name].minutes:g} minutes', flush=True)
        if why := why_not(JOBS[name], options): said['skipped'].append(f'{name}: not run, {why}')
        else:
            try: results[name] = run_job(name, options)
            except (RuntimeError, ValueError, TypeError) as e: said['failed'].append(f'{name}: {e}') # the latter: of its rows
        save(results) # a long job that comes later may be interrupted
    save(results)
    for o in said['skipped'] + said['failed']: print(o, file=sys.stderr)
    print(f'\n{PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE}')
    return int(bool(said['failed']))

if __name__ == '__main__': sys.exit(main())

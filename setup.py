"settings.ini to setuptools; a wheel also carries the configs, tutorials and the app as `imgcls_nb/shipped/`"
from configparser import ConfigParser
from pathlib import Path
from shutil import copyfile, rmtree

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
SHIPPED = [('nbs', 'tutorials/*.ipynb'), ('nbs', 'app/*.ipynb'),
           ('.', 'configs/**/*.yaml'), ('.', 'configs/**/*.csv'), ('.', 'configs/**/*.txt')]

class BuildShipped(build_py):
    def run(self):
        super().run()
        if self.editable_mode: return # the code looks in the checkout
        rmtree(Path(self.build_lib)/'imgcls_nb/shipped', ignore_errors=True) # an earlier build's
        for root, pattern in SHIPPED:
            for src in sorted((here/root).glob(pattern)):
                if '.ipynb_checkpoints' in src.parts: continue
                dst = Path(self.build_lib)/'imgcls_nb/shipped'/src.relative_to(here/root)
                dst.parent.mkdir(parents=True, exist_ok=True)
                copyfile(src, dst)

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], author=cfg['author'],
    license_expression=cfg['license'], keywords=cfg['keywords'].split(), python_requires=f">={cfg['min_python']}",
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    classifiers=['Programming Language :: Python :: 3 :: Only', 'Framework :: Jupyter', 'Intended Audience :: Developers',
                 'Topic :: Scientific/Engineering :: Image Recognition'],
    packages=find_packages(include=['imgcls_nb*']), cmdclass={'build_py': BuildShipped},
    package_data={'imgcls_nb.widgets': ['*.js', '*.css']},
    install_requires=cfg['requirements'].split(),
    extras_require={k.removesuffix('_requirements'): v.split() for k, v in cfg.items() if k.endswith('_requirements')},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['imgcls_nb = imgcls_nb._modidx:d']},
)

"Names in Chinese are drawn where a font has them, and nowhere leave warnings on the page"
import io
import logging
import warnings
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

from imgcls_nb import figures
from imgcls_nb.checks import DataReport
from imgcls_nb.compare import Comparison
from imgcls_nb.comparing import RunComparison
from imgcls_nb.confusion import Confusion
from imgcls_nb.figures import CHINESE, any_script, figure_png, show_curves, show_figure, show_points


@pytest.fixture(autouse=True)
def strict(): # an error for each warning that would stand on a page
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield
    plt.close('all')

@pytest.fixture(params=[(), CHINESE], ids=['without a font', 'with fonts'])
def fonts(request, monkeypatch): # known by name; those that are in no file are drawn as before
    known = [o for o in fontManager.get_font_names() if o not in CHINESE]
    monkeypatch.setattr(fontManager, 'get_font_names', lambda: [*known, *request.param])
    return request.param

def drawn(): # texts of all kinds; those of the ticks are made when it is drawn
    fig, ax = plt.subplots(figsize=(2, 2), layout='constrained')
    ax.barh(['方形', '圆形'], [1, 2], label='形')
    ax.set(title='方形', xlabel='圆形')
    ax.annotate('圆', (1, 1))
    ax.legend(title='方')
    return fig

def lacking(o, family): return [t.get_text() for t in o.findobj(Text) if family not in t.get_fontfamily()]

class TestNoWarnings:
    def test_matplotlib_alone_would_warn(self):
        with plt.rc_context({'font.family': 'DejaVu Sans'}), pytest.raises(UserWarning, match='Glyph .* missing from'):
            drawn().savefig(io.BytesIO())

    def test_of_a_figure(self): assert 'alt="方形"' in show_figure(drawn(), '方形').data

    @pytest.mark.parametrize('show', [show_curves, show_points])
    def test_of_curves_and_points(self, show): assert show({'方形': [.5, .6]}, 'words')

    def test_of_a_viewers_picture(self):
        looks = pytest.importorskip('imgcls_nb.widgets.looks', reason="viewers need the lab extra")
        class Drawn(looks.Viewer):
            def build(self): return []
            def plot(self):
                fig, [[ax]] = looks.paper(2, 1)
                ax.set_title('方形')
                return fig
        assert 'image/png' in Drawn()._repr_mimebundle_()
        assert Drawn().plot()._repr_png_()

    def test_others_are_told(self):
        fig = plt.figure()
        fig.draw = lambda renderer: warnings.warn('something else', UserWarning, stacklevel=2)
        with pytest.raises(UserWarning, match='something else'): figure_png(fig)

class TestFamilies:
    def test_the_first_that_is_known_is_asked_last(self, fonts):
        fig = drawn()
        before = fig.axes[0].title.get_fontfamily()
        assert any_script(any_script(fig)) is fig
        assert fig.axes[0].title.get_fontfamily() == [*before, *fonts[:1]]
        assert not fonts or not lacking(fig, fonts[0])

    def test_a_list_of_ones_own_stays_first(self, fonts):
        with plt.rc_context({'font.family': ['DejaVu Serif', 'DejaVu Sans']}): fig = drawn()
        assert any_script(fig).axes[0].title.get_fontfamily() == ['DejaVu Serif', 'DejaVu Sans', *fonts[:1]]

    def test_settings_stay(self, fonts):
        before = dict(plt.rcParams)
        any_script(drawn())
        assert dict(plt.rcParams) == before

    @pytest.mark.parametrize('fonts', [CHINESE], indirect=True, ids=['with fonts'])
    def test_what_others_show_has_it_too(self, fonts):
        classes = ['方形', '圆形']
        run = SimpleNamespace(history=lambda: pd.DataFrame(dict(epoch=[0, 1], train_loss=[2., 1], top1=[.5, 1])))
        table = pd.DataFrame(dict(gained=[1], lost=[0], gain=[.5]), index=classes[:1])
        compared = SimpleNamespace(per_class=lambda: table, names=classes, gained=[1], lost=[])
        report = SimpleNamespace(sizes=np.ones((2, 2)), classes=classes, counts=dict(train={'方形': 1}))
        for o in (Confusion([[1, 1], [0, 1]], classes).plot(), RunComparison({'方形': run}, table).plot(),
                  Comparison.plot(compared), DataReport.plot(report)):
            assert '方形' in {t.get_text() for t in o.findobj(Text)} and not lacking(o, CHINESE[0])

    def test_papers_have_it_however_they_are_drawn(self, monkeypatch):
        looks = pytest.importorskip('imgcls_nb.widgets.looks', reason="viewers need the lab extra")
        monkeypatch.setattr(figures, 'CHINESE', ('DejaVu Serif',))
        fig, [[ax]] = looks.paper(2, 1)
        ax.set_title('circle')
        fig.canvas.print_figure(io.BytesIO(), bbox_inches='tight') # as `%matplotlib inline` does
        assert not lacking(ax, 'DejaVu Serif')

def test_a_glyph_comes_from_the_second_font(monkeypatch):
    "Any font that has what DejaVu Sans lacks stands for a Chinese one, as none need be installed"
    monkeypatch.setattr(figures, 'CHINESE', ('STIXGeneral',))
    missing = '\u20dd' # a circle around what is before it
    fig = plt.figure(figsize=(1, 1))
    fig.text(.5, .5, missing)
    any_script(fig).savefig(io.BytesIO())

def test_of_the_weight_of_a_fallback_nothing_is_said(caplog):
    log = logging.getLogger('matplotlib.font_manager')
    for family in ('WenQuanYi Zen Hei', 'Another'): log.warning('No font weight %s for %s, now %s.', 'normal', family, 500)
    log.warning('%r not found.', 'SimHei') # which somebody asked for by name
    log.warning('no arguments')
    assert [o.getMessage() for o in caplog.records] == [
        'No font weight normal for Another, now 500.', "'SimHei' not found.", 'no arguments']

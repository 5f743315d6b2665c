# pip from local wheels into a virtual environment, compileall, and a test run with pytest.
python3 -m venv --without-pip env
python3 -m pip --python env/bin/python install -q --no-index --find-links /opt/wheels ${LONG:+flask} pytest 2>/tmp/log || { cat /tmp/log >&2; exit 1; }
env/bin/python -m pip --version >/dev/null 2>&1 || echo 'no pip inside'
find env -name '*.py' | sort | sha256sum
python3 -m compileall -q -j2 env/lib --invalidation-mode unchecked-hash -f && find env -name '*.pyc' | wc -l
cat >test_app.py <<'T'
import subprocess, sys, threading
def test_child(tmp_path):
    (tmp_path / 'x').write_text('print(6*7)')
    assert subprocess.check_output([sys.executable, str(tmp_path / 'x')]) == b'42\n'
def test_fails(): assert 1 == 2
T
[ -z "${LONG:-}" ] || cat >>test_app.py <<'T'
import flask
def app():
    a = flask.Flask('x')
    a.add_url_rule('/<n>', view_func=lambda n: n * 2, endpoint='n')
    return a.test_client()
def test_get(): assert app().get('/ab').data == b'abab'
def test_threads():
    got = []
    t = [threading.Thread(target=lambda i=i: got.append(app().get(f'/{i}').data)) for i in range(8)]
    [x.start() for x in t]; [x.join() for x in t]
    assert len(got) == 8
T
env/bin/python -m pytest -q -p no:cacheprovider test_app.py 2>&1 | sed 's/ in [0-9.]*s//' | tail -5 || true

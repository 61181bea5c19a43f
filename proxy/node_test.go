package proxy_test

import (
	"os"
	"os/exec"
	"testing"

	"tokenward/enforce/canon"
)

// nodeClient drives the door with Node's own clients: an agent that keeps its
// connections, fetch, a request body that is streamed, and many at once.
const nodeClient = `
const http = require('node:http');
const [address, token] = process.argv.slice(1);
const [host, port] = address.split(':');
const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
const fail = (what) => { console.error(what); process.exit(1); };
function ask(method, path, headers, pieces) {
  return new Promise((resolve, reject) => {
    const req = http.request({ host, port, method, path, headers: { 'Api-Token': token, ...headers }, agent }, (res) => {
      let body = '';
      res.setEncoding('utf8');
      res.on('data', (d) => { body += d; });
      res.on('end', () => resolve({ status: res.statusCode, headers: res.headers, body }));
    });
    req.on('error', reject);
    for (const p of pieces || []) req.write(p);
    req.end();
  });
}
(async () => {
  let r = await ask('GET', '/echo/a');
  if (r.status !== 200 || r.body !== 'hello ' || !r.headers['x-request-id']) fail(['get', r]);
  r = await ask('POST', '/echo/a', {}, ['one ', 'two ', 'three']);
  if (r.status !== 200 || r.body !== 'hello one two three') fail(['chunked', r]);
  r = await ask('POST', '/echo/a', { 'Content-Length': 4, Expect: '100-continue' }, ['body']);
  if (r.status !== 200 || r.body !== 'hello body') fail(['expect', r]);
  r = await ask('HEAD', '/accounts/1');
  if (r.status !== 200 || r.body !== '') fail(['head', r]);
  r = await ask('GET', '/echo/a', { 'Api-Token': 'tw_garbage' });
  if (r.status !== 401 || JSON.parse(r.body).code !== 'invalid_token') fail(['garbage', r]);
  const all = await Promise.all(Array.from({ length: 100 }, (_, i) => ask('POST', '/echo/a', {}, ['n' + i])));
  all.forEach((one, i) => { if (one.body !== 'hello n' + i) fail(['many', i, one]); });
  const f = await fetch('http://' + address + '/echo/b', { method: 'PUT', headers: { authorization: 'Bearer ' + token }, body: 'fetched' });
  if (f.status !== 200 || await f.text() !== 'hello fetched') fail(['fetch', f.status]);
  agent.destroy();
  console.log('fine');
})().catch(fail);
`

func TestNodeClientsNoticeNothing(t *testing.T) {
	node, err := exec.LookPath("node")
	switch {
	case err != nil && os.Getenv("CI") == "true":
		t.Fatal("node is not installed: CI needs it")
	case err != nil:
		t.Skip("node is not installed: its clients are not tried")
	}
	eachHTTP1Door(t, func(t *testing.T, w *world, addr string) {
		out, err := exec.CommandContext(t.Context(), node, "-e", nodeClient, addr, w.secrets["full"]).CombinedOutput() //nolint:gosec // our own script
		if err != nil || string(out) != "fine\n" {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// eachHTTP1Door runs f once for each way in that takes raw HTTP/1.1.
func eachHTTP1Door(t *testing.T, f func(t *testing.T, w *world, addr string)) {
	t.Helper()
	for _, d := range doors {
		if d.name == "wire" || d.name == "net/http" {
			t.Run(d.name, func(t *testing.T) {
				w := newWorld(t, canon.Options{})
				f(t, w, d.open(t, w))
			})
		}
	}
}

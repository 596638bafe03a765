// Node's reader of HTTP (llhttp) as a server that says what it read: node parser_server.js PORT LOG [lenient].
// The lines and answers are those of parser_server.py.
'use strict';
const fs = require('fs');
const http = require('http');

const [port, path, lenient] = process.argv.slice(2);
const file = fs.openSync(path, 'a');
const log = (wire, what, more) => fs.writeSync(file, JSON.stringify({ wire, what, ...more }) + '\n');

function answer(response, head, size, early) {
  const said = early ? `${head.method} ${head.target} early` : `${head.method} ${head.target} ${size}`;
  response.setHeader('X-Seen', said);
  const text = Buffer.from((said + '\n').repeat(3));
  if (size % 2) response.setHeader('Content-Length', text.length);
  else if (head.method !== 'HEAD') response.write(text.subarray(0, 5)); // chunked
  response.end(size % 2 || head.method === 'HEAD' ? text : text.subarray(5));
}

const server = http.createServer({ insecureHTTPParser: lenient === 'lenient' }, (request, response) => {
  const lines = [];
  for (let i = 0; i < request.rawHeaders.length; i += 2) lines.push([request.rawHeaders[i], request.rawHeaders[i + 1]]);
  const head = { method: request.method, target: request.url, lines };
  const wire = request.socket.remotePort;
  const early = request.url.includes('/early');
  const parts = [];
  log(wire, 'head', head);
  request.on('data', (part) => parts.push(part));
  request.on('error', () => {});
  request.on('end', () => {
    const body = Buffer.concat(parts);
    log(wire, 'whole', { ...head, body: body.toString('latin1'), trailers: request.rawTrailers.length });
    if (!early) answer(response, head, body.length, false);
  });
  if (early) answer(response, head, 0, true);
});
const switched = (request, socket) => {
  log(socket.remotePort, 'bad', { error: `switched protocols: ${request.method} ${request.url}` });
  socket.destroy();
};
server.on('upgrade', switched);
server.on('connect', switched);
server.on('clientError', (error, socket) => {
  if (error.code !== 'ECONNRESET' && error.code !== 'HPE_INVALID_EOF_STATE') {
    log(socket.remotePort, 'bad', { error: `${error.code} ${error.message}` });
  }
  if (socket.writable) socket.end('HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n');
});
server.keepAliveTimeout = 60000;
server.listen({ port: Number(port), host: '0.0.0.0', backlog: 512 });

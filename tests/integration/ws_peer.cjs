// The peer of test_ws_npm_interop.py, on the npm package `ws`.
//
//   node ws_peer.cjs server [CERTIFICATE KEY]     prints its port; the path of a connection chooses what it does,
//                                                 and its query, in JSON, how it compresses;
//                                                 prints a line of JSON for every close it sees; ends with stdin
//   node ws_peer.cjs client SCENARIO URL [CA]     prints one line of JSON; DEFLATE in the environment, in
//                                                 JSON, is a list of URLs, each with a way to compress, for
//                                                 several connections one after the other
'use strict'
const { once } = require('events')
const { readFileSync } = require('fs')
const http = require('http')
const https = require('https')
const { WebSocket, WebSocketServer } = require('ws')

const report = (value) => console.log(JSON.stringify(value))

const behaviours = {
  '/echo': (ws) => ws.on('message', (data, binary) => ws.send(data, { binary })),
  '/fragments': (ws) => {
    ws.send('κό', { fin: false })
    ws.send('', { fin: false })
    ws.send('σμε', { fin: true })
    ws.send(Buffer.from([0, 1]), { fin: false })
    ws.send(Buffer.from([2]), { fin: true })
    ws.close(1000)
  },
  '/ping': (ws) => {
    ws.on('pong', (data) => ws.send(`pong: ${data}`))
    ws.ping('are you there')
  },
  '/close': (ws) => ws.close(4001, 'ünïcödé'),
  '/close-without-code': (ws) => ws.close(),
  '/terminate': (ws) => ws.terminate(),
  '/headers': (ws, request) => ws.send(JSON.stringify(request.headers)),
  '/wait': () => {}
}

function serve (certificate, key) {
  const server = certificate
    ? https.createServer({ cert: readFileSync(certificate), key: readFileSync(key) })
    : http.createServer()
  const socketsWith = (perMessageDeflate) => {
    const sockets = new WebSocketServer({
      noServer: true,
      perMessageDeflate,
      handleProtocols: (offered) => offered.has('v1') ? 'v1' : false
    })
    sockets.on('headers', (headers, request) => {
      if (request.headers['x-question']) headers.push(`X-Answer: ${request.headers['x-question']}`)
    })
    sockets.on('connection', (ws, request) => {
      ws.on('error', () => {})
      ws.on('close', (code, reason) => report({ code, reason: `${reason}` }))
      behaviours[request.url.split('?')[0]](ws, request)
    })
    return sockets
  }
  server.on('upgrade', (request, socket, head) => {
    if (request.url === '/refuse') {
      socket.end('HTTP/1.1 401 Unauthorized\r\nContent-Length: 13\r\nConnection: close\r\n\r\nwho are you?\n')
    } else {
      const options = request.url.split('?')[1]
      const sockets = socketsWith(options ? JSON.parse(decodeURIComponent(options)) : true)
      sockets.handleUpgrade(request, socket, head, (ws) => sockets.emit('connection', ws, request))
    }
  })
  server.listen(0, '127.0.0.1', () => report(server.address().port))
  process.stdin.on('end', () => process.exit(0)).resume()
}

const allKinds = ['', 'hello', 'κόσμε 🐍', '€'.repeat(100000),
  Buffer.alloc(0), Buffer.from([0, 255]), Buffer.alloc(65536, 'x'), Buffer.alloc(4 << 20, 'y')]
// Longer than any window.
const text = Array.from({ length: 1500 }, (_, i) => `{"id": ${i}, "name": "name ${i % 97}"}`).join()

const scenarios = {
  async echo (ws, messages = allKinds) {
    await once(ws, 'open')
    const same = []
    for (const message of messages) {
      ws.send(message)
      const [data, binary] = await once(ws, 'message')
      same.push(binary === Buffer.isBuffer(message) && data.equals(Buffer.from(message)))
    }
    ws.close()
    return same
  },
  async compression (ws) {
    const same = await scenarios.echo(ws)
    return [ws.extensions, same.every(Boolean)]
  },
  async compressible (ws) {
    const same = await scenarios.echo(ws, [text.slice(0, 2000), text, text.slice(0, 2000), Buffer.from(text), ''])
    return [ws.extensions, same.every(Boolean)]
  },
  async fragments (ws) {
    await once(ws, 'open')
    ws.send('κό', { fin: false })
    ws.send('', { fin: false })
    ws.ping('in between')
    ws.send('σμε', { fin: true })
    const [data, binary] = await once(ws, 'message')
    ws.close()
    return [`${data}`, binary]
  },
  async ping (ws) {
    await once(ws, 'open')
    ws.ping('are you there')
    const [data] = await once(ws, 'pong')
    ws.close()
    return `${data}`
  },
  async 'be-pinged' (ws) {
    const [data] = await once(ws, 'message')
    ws.close()
    return `${data}`
  },
  async close (ws) {
    await once(ws, 'open')
    ws.close(3001, 'ünïcödé')
    const [code, reason] = await once(ws, 'close')
    return { code, reason: `${reason}` }
  },
  async 'close-without-code' (ws) {
    await once(ws, 'open')
    ws.close()
    const [code, reason] = await once(ws, 'close')
    return { code, reason: `${reason}` }
  },
  async 'be-closed' (ws) {
    const [code, reason] = await once(ws, 'close')
    return { code, reason: `${reason}` }
  },
  async terminate (ws) {
    await once(ws, 'open')
    ws.terminate()
    const [code] = await once(ws, 'close')
    return code
  },
  async handshake (ws) {
    // The first message may come in the same packet as the answer.
    const [[response], [data]] = await Promise.all([once(ws, 'upgrade'), once(ws, 'message')])
    ws.close()
    return { answer: response.headers['x-answer'], protocol: ws.protocol, data: `${data}` }
  },
  async refused (ws) {
    const [, response] = await once(ws, 'unexpected-response')
    let body = ''
    for await (const chunk of response) body += chunk
    return { status: response.statusCode, body }
  }
}

function open (url, options) {
  return new WebSocket(url, ['v3', 'v1'], { ...options, headers: { 'X-Question': 'six times seven' } })
}

async function connect (scenario, url, ca) {
  const reports = []
  for (const [to, perMessageDeflate] of JSON.parse(process.env.DEFLATE || 'null') || [[url, true]]) {
    const ws = open(to, { ca: ca && readFileSync(ca), perMessageDeflate })
    reports.push(await scenarios[scenario](ws))
  }
  report(process.env.DEFLATE ? reports : reports[0])
}

const [mode, ...rest] = process.argv.slice(2)
if (mode === 'server') serve(...rest)
else connect(...rest)

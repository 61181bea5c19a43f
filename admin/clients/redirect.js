// Preloaded into Node: leads connections for mailtrap.io, an address that is
// fixed in the client, to the test's own TLS listener. The client stays as it
// is, and so does everything that it sends.
"use strict";

const tls = require("tls");

const { connect } = tls;
const port = Number(process.env.MAILTRAP_PORT);

tls.connect = (options, ...rest) => {
  if (typeof options !== "object" || options.host !== "mailtrap.io") {
    throw new Error(`a client connects to ${options.host ?? options}, which no test expects`);
  }
  return connect({ ...options, host: "127.0.0.1", port, servername: "mailtrap.io" }, ...rest);
};

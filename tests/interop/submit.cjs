// Sends one message with nodemailer: node submit.cjs MODULE, with JSON on standard input that holds the
// options of the transport and of the message. Prints what the server answered, or the error, as JSON.
const nodemailer = require(process.argv[2]);
const { transport, message } = JSON.parse(require("node:fs").readFileSync(0, "utf8"));

nodemailer.createTransport(transport).sendMail(message).then(
  (info) => console.log(JSON.stringify({ accepted: info.accepted, rejected: info.rejected, response: info.response })),
  (error) => console.log(JSON.stringify({ code: error.code, responseCode: error.responseCode, response: error.response })),
);

// Controls the official OFREP provider for browsers over pipes, with lines of JSON.
//
// Usage: web_client.mjs FOLDER OPTIONS. The folder contains node_modules. The options are those of the provider, as JSON,
// with `headers` as a list of pairs, and an additional `context`.
//
// The first line of the output says whether the provider is ready. From then on, every line of the input is a question,
// `{"ask": NAME, ..}`, and the output has one line for it, `{"answer": ..}`. Between the answers, the output has the events of
// the provider, and log lines. The program shuts down at the end of the input.

import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { join } from 'node:path';

const [folder, options] = process.argv.slice(2);
const require = createRequire(join(folder, 'package.json'));
const { OFREPWebProvider } = require('@openfeature/ofrep-web-provider');
const { OpenFeature, ProviderEvents } = require('@openfeature/web-sdk');
const { context, ...providerOptions } = JSON.parse(options);

// Browser APIs that Node does not have. Without a document, the page is always visible.
globalThis.EventSource = require('eventsource').EventSource;

const tell = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const log = (level) => (...words) => tell({ heard: 'log', level, text: words.join(' ') });
const logger = { error: log('error'), warn: log('warn'), info: log('info'), debug: log('debug') };

OpenFeature.setLogger(logger);
for (const [heard, event] of [
  ['changed', ProviderEvents.ConfigurationChanged],
  ['stale', ProviderEvents.Stale],
  ['error', ProviderEvents.Error],
]) {
  OpenFeature.addHandler(event, (details) =>
    tell({ heard, flags: details?.flagsChanged && [...details.flagsChanged].sort(), message: details?.message }),
  );
}

const questions = {
  details({ type, key, default: fallback }) {
    const client = OpenFeature.getClient();
    const read = { boolean: 'Boolean', string: 'String', integer: 'Number', float: 'Number', object: 'Object' }[type];
    const { value, variant, reason, flagMetadata, errorCode, errorMessage } = client[`get${read}Details`](key, fallback);
    return errorCode
      ? { value, error: errorCode, message: errorMessage }
      : { value, variant, reason, metadata: flagMetadata };
  },
  async context({ context }) {
    await OpenFeature.setContext(context);
    return 'set';
  },
};

try {
  await OpenFeature.setProviderAndWait(new OFREPWebProvider({ cacheMode: 'disabled', ...providerOptions }, logger), context);
  tell({ answer: 'ready' });
  for await (const line of createInterface({ input: process.stdin })) {
    const question = JSON.parse(line);
    tell({ answer: await questions[question.ask](question) });
  }
} catch (error) {
  tell({ answer: { error: error.code, message: error.message } });
}
await OpenFeature.close();

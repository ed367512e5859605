/** How requests travel from JupyterLab: its own connection knows the base URL, the token and the XSRF cookie. */
import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

import type { Send } from './api';

export function jupyterSend(settings: ServerConnection.ISettings): Send {
  return (path, init) => ServerConnection.makeRequest(URLExt.join(settings.baseUrl, path), init, settings);
}

/** Icons as SVG text. They take their colour from JupyterLab's `jp-icon*` classes, so they fit every theme. */

const frame = (body: string): string =>
  `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24"><g class="jp-icon3" fill="#616161">${body}</g></svg>`;

/** A graphics card. */
export const CARD = frame(
  '<path fill-rule="evenodd" d="M2 5h2v15H2zM5 6h16a1 1 0 0 1 1 1v9a1 1 0 0 1-1 1H5z' +
    'M13.5 7.3a4.2 4.2 0 1 0 0 8.4a4.2 4.2 0 1 0 0-8.4zM13.5 8.9a2.6 2.6 0 1 1 0 5.2a2.6 2.6 0 1 1 0-5.2zM7 17h8v2H7z"/>'
);
export const PLAY_ON_CARD = frame('<path d="M4 4l9 6-9 6zM13 17h8v3h-8zM14 13h6v3h-6z"/>');
export const STOP = frame('<path d="M6 6h12v12H6z"/>');
export const CLOCK = frame(
  '<path d="M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zm0 2a7 7 0 1 1 0 14 7 7 0 0 1 0-14zm-1 2h2v5l3.5 2-1 1.7L11 13z"/>'
);
export const COINS = frame(
  '<path d="M4 8c0-1.7 3.6-3 8-3s8 1.3 8 3-3.6 3-8 3-8-1.3-8-3zm0 3.5c1.5 1.2 4.5 2 8 2s6.500-.8 8-2V14c0 1.700-3.600 3-8 3s-8-1.300-8-3zm0 6c1.500 1.200 4.500 2 8 2s6.500-.800 8-2V18c0 1.700-3.600 3-8 3s-8-1.300-8-3z"/>'
);
export const LOG = frame('<path d="M5 4h14v2H5zm0 4h10v2H5zm0 4h14v2H5zm0 4h8v2H5z"/>');
export const REFRESH = frame(
  '<path d="M12 5a7 7 0 0 1 6 3.400V5h2v7h-7v-2h4a5 5 0 1 0 .600 5h2.100A7 7 0 1 1 12 5z"/>'
);
